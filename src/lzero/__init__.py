"""An L0 hypervisor you can import."""
