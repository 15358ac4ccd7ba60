"""What the scripts beside this package share: building guest images, kernels and initramfs archives."""
