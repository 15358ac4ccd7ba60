"""The facts of Intel's manual as typed tables, one row per fact. No behaviour.

Sections are those of the *Intel 64 and IA-32 Architectures Software Developer's Manual*, volume 3, in the chapter
numbering of the editions since 083 (2024): 25 "Virtual Machine Control Structures", 26 "VMX Non-Root Operation",
27 "VM Entries", 28 "VM Exits", 29 "VMX Support for Address Translation", 30 "APIC Virtualization", 31 "VMX
Instruction Reference", appendix A "VMX Capability Reporting Facility", B "Field Encoding in VMCS", C "VMX Basic Exit
Reasons". Earlier editions number these chapters one lower (24 to 30), those since late 2025 two higher (27 to 33); what
follows the dot is nearly the same. Other volumes are named ("vol. 2").

Every name is the manual's; the names of KVM and Linux are aliases. The room imports nothing of lzero.

=======================  =====================================================================
``exit_reasons``         VMX basic exit reasons
``svm_exit_codes``       AMD's exit codes, for traces
``vmcs_fields``          VMCS fields: encoding, width, kind, which control makes them exist
``controls``             bits of the VM-execution, VM-exit and VM-entry controls
``capabilities``         IA32_VMX_* capability MSRs and what they say (``VmxCapabilities``)
``msrs``                 model-specific registers
``registers``            CR0, CR4, EFER, RFLAGS, DR6, DR7, segment access rights
``exceptions``           vectors and their classes
``formats``              exit qualifications, interruption information, EPTP …
``instruction_info``     VM-exit instruction-information formats
``vm_instruction_errors``  VM-instruction error numbers
``cpuid``                CPUID leaves and feature bits
=======================  =====================================================================
"""
