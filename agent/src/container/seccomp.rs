//! The system calls a container may make. Pure.
//!
//! Default is refusal with EPERM; what ordinary programs need is listed. Refused stay above all: mounting and
//! namespaces, kernel keys, BPF, tracing and reading other processes' memory, kernel modules, swap, clocks, io_uring
//! (it does file and network calls past this filter), userfaultfd, and sockets of unusual families. A capability that
//! a container was given opens the calls that are useless without it. Names unknown to the host's libseccomp are
//! skipped by the runtime, and refused by the kernel's default.

use std::collections::BTreeSet;

use oci_spec::OciSpecError;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompBuilder,
    LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// Files, descriptors, directories.
const FILES: &str = "access faccessat faccessat2 open openat openat2 creat close close_range read pread64 preadv preadv2 \
    readv write pwrite64 pwritev pwritev2 writev lseek _llseek dup dup2 dup3 fcntl fcntl64 flock fsync fdatasync sync \
    syncfs sync_file_range sync_file_range2 truncate truncate64 ftruncate ftruncate64 fallocate fadvise64 fadvise64_64 \
    arm_fadvise64_64 arm_sync_file_range readahead stat stat64 fstat fstat64 fstatat64 newfstatat lstat lstat64 statx \
    statfs statfs64 fstatfs fstatfs64 getdents getdents64 getcwd chdir fchdir mkdir mkdirat rmdir link linkat symlink \
    symlinkat unlink unlinkat rename renameat renameat2 readlink readlinkat chmod fchmod fchmodat fchmodat2 chown \
    chown32 fchown fchown32 fchownat lchown lchown32 umask utime utimes utimensat utimensat_time64 futimesat mknod \
    mknodat getxattr getxattrat lgetxattr fgetxattr listxattr listxattrat llistxattr flistxattr setxattr setxattrat \
    lsetxattr fsetxattr removexattr removexattrat lremovexattr fremovexattr copy_file_range sendfile sendfile64 splice \
    tee vmsplice pipe pipe2 poll ppoll ppoll_time64 select _newselect pselect6 pselect6_time64 epoll_create \
    epoll_create1 epoll_ctl epoll_ctl_old epoll_wait epoll_wait_old epoll_pwait epoll_pwait2 eventfd eventfd2 \
    inotify_init inotify_init1 inotify_add_watch inotify_rm_watch fanotify_mark memfd_create name_to_handle_at \
    io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents io_pgetevents_time64 cachestat statmount listmount";

/// Memory.
const MEMORY: &str = "brk mmap mmap2 munmap mremap mprotect madvise process_madvise msync mincore mlock mlock2 mlockall \
    munlock munlockall remap_file_pages pkey_alloc pkey_free pkey_mprotect membarrier memfd_secret map_shadow_stack \
    mseal shmget shmat shmctl shmdt";

/// Processes, threads, identities, scheduling within the own limits.
const PROCESSES: &str = "fork vfork execve execveat exit exit_group wait4 waitid waitpid getpid getppid gettid getpgid \
    getpgrp setpgid getsid setsid getuid getuid32 geteuid geteuid32 getgid getgid32 getegid getegid32 setuid setuid32 \
    setgid setgid32 setreuid setreuid32 setregid setregid32 setresuid setresuid32 setresgid setresgid32 getresuid \
    getresuid32 getresgid getresgid32 setfsuid setfsuid32 setfsgid setfsgid32 getgroups getgroups32 setgroups \
    setgroups32 capget capset prctl arch_prctl set_tid_address set_robust_list get_robust_list set_thread_area \
    get_thread_area rseq getrlimit ugetrlimit setrlimit prlimit64 getrusage times getpriority setpriority ioprio_get \
    ioprio_set sched_yield sched_getaffinity sched_setaffinity sched_getparam sched_setparam sched_getscheduler \
    sched_setscheduler sched_getattr sched_setattr sched_get_priority_max sched_get_priority_min sched_rr_get_interval \
    sched_rr_get_interval_time64 getcpu pidfd_open pidfd_send_signal landlock_create_ruleset landlock_add_rule \
    landlock_restrict_self seccomp restart_syscall sysinfo uname alarm setitimer getitimer lsm_get_self_attr \
    lsm_set_self_attr lsm_list_modules";

/// Signals, timers, synchronisation, message queues and semaphores.
const SIGNALS: &str = "kill tkill tgkill pause sigaltstack signal sigaction sigprocmask sigpending sigreturn sigsuspend \
    rt_sigaction rt_sigprocmask rt_sigpending rt_sigqueueinfo rt_tgsigqueueinfo rt_sigreturn rt_sigsuspend \
    rt_sigtimedwait rt_sigtimedwait_time64 signalfd signalfd4 futex futex_time64 futex_waitv futex_wait futex_wake \
    futex_requeue nanosleep clock_nanosleep clock_nanosleep_time64 clock_gettime clock_gettime64 clock_getres \
    clock_getres_time64 gettimeofday time timer_create timer_delete timer_settime timer_settime64 timer_gettime \
    timer_gettime64 timer_getoverrun timerfd_create timerfd_settime timerfd_settime64 timerfd_gettime \
    timerfd_gettime64 adjtimex clock_adjtime clock_adjtime64 mq_open mq_unlink mq_timedsend mq_timedsend_time64 \
    mq_timedreceive mq_timedreceive_time64 mq_notify mq_getsetattr msgget msgsnd msgrcv msgctl semget semop \
    semtimedop semtimedop_time64 semctl ipc getrandom";

/// Networking, once a socket exists.
const NETWORK: &str = "socketpair bind listen accept accept4 connect getsockname getpeername getsockopt setsockopt send \
    sendto sendmsg sendmmsg recv recvfrom recvmsg recvmmsg recvmmsg_time64 shutdown socketcall";

/// Calls of single architectures that their C libraries need.
const X86: &str = "modify_ldt";
const ARM: &str = "breakpoint cacheflush set_tls";
const RISCV: &str = "riscv_flush_icache riscv_hwprobe";

/// What a capability opens.
const WITH_CAPABILITY: [(u8, &str); 13] = [
    // DAC_READ_SEARCH
    (2, "open_by_handle_at"),
    // SYS_CHROOT
    (18, "chroot"),
    // SYS_ADMIN; within the container's own user namespace
    (
        21,
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount \
         open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare \
         pivot_root",
    ),
    // SYS_BOOT
    (22, "reboot"),
    // SYS_MODULE
    (16, "delete_module init_module finit_module"),
    // SYS_PACCT
    (20, "acct"),
    // SYS_PTRACE
    (19, "kcmp pidfd_getfd ptrace process_vm_readv process_vm_writev"),
    // SYS_RAWIO
    (17, "iopl ioperm"),
    // SYS_TIME
    (25, "settimeofday stime clock_settime clock_settime64"),
    // SYS_TTY_CONFIG
    (26, "vhangup"),
    // SYS_NICE
    (
        23,
        "get_mempolicy mbind set_mempolicy set_mempolicy_home_node migrate_pages move_pages",
    ),
    // SYSLOG
    (34, "syslog"),
    // BPF and PERFMON
    (39, "bpf"),
];

/// The type of btrfs's requests to ioctl(2), bits 8 to 15. Anybody may make a subvolume where they may write, and a new one has no limit: neither
/// a container's disk limit (R1) nor a volume's size would hold.
const BTRFS: u64 = 0x94;
/// FICLONE, FICLONERANGE and FIDEDUPERANGE, which are of all file systems and only began there.
const CLONE_FILES: [u64; 3] = [0x4004_9409, 0x4020_940d, 0xc018_9436];

/// Namespace flags of clone(2).
const CLONE_NAMESPACES: u64 = 0x7E02_0000;

fn rule(
    names: impl IntoIterator<Item = String>,
    args: Vec<LinuxSeccompArg>,
) -> Result<LinuxSyscall, OciSpecError> {
    let names: Vec<String> = names.into_iter().collect();
    let builder = LinuxSyscallBuilder::default()
        .names(names)
        .action(LinuxSeccompAction::ScmpActAllow);
    if args.is_empty() {
        builder.build()
    } else {
        builder.args(args).build()
    }
}

fn argument(
    index: usize,
    op: LinuxSeccompOperator,
    value: u64,
    two: Option<u64>,
) -> Result<LinuxSeccompArg, OciSpecError> {
    let builder = LinuxSeccompArgBuilder::default().index(index).op(op).value(value);
    match two {
        Some(two) => builder.value_two(two).build(),
        None => builder.build(),
    }
}

fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split_whitespace().map(str::to_owned)
}

/// The architectures a host of this kind runs, its 32-bit sister included.
fn architectures(machine: &str) -> Vec<Arch> {
    match machine {
        "x86_64" => vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32],
        "aarch64" => vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm],
        "s390x" => vec![Arch::ScmpArchS390x, Arch::ScmpArchS390],
        "powerpc64" => vec![Arch::ScmpArchPpc64le],
        "riscv64" => vec![Arch::ScmpArchRiscv64],
        _ => vec![Arch::ScmpArchNative],
    }
}

/// The profile for a container with these capabilities (kernel numbers) on this machine (`std::env::consts::ARCH`).
///
/// # Errors
/// Never in practice: only if oci-spec's own builders refuse.
pub fn profile(capabilities: &BTreeSet<u8>, machine: &str) -> Result<LinuxSeccomp, OciSpecError> {
    use LinuxSeccompOperator::{ScmpCmpEq, ScmpCmpMaskedEq};
    let mut allowed: BTreeSet<String> = BTreeSet::new();
    for list in [FILES, MEMORY, PROCESSES, SIGNALS, NETWORK] {
        allowed.extend(words(list));
    }
    allowed.extend(words(match machine {
        "x86_64" => X86,
        "aarch64" => ARM,
        "riscv64" => RISCV,
        _ => "",
    }));
    for (capability, list) in WITH_CAPABILITY {
        if capabilities.contains(&capability) {
            allowed.extend(words(list));
        }
    }
    let admin = capabilities.contains(&21);
    let mut rules = vec![rule(allowed, Vec::new())?];
    // ioctl: what differs from btrfs's type in one bit or more. The kernel reads the lower 32 bits of the request, as these masks do.
    for bit in 0..8u64 {
        let mask = 1 << (8 + bit);
        let other = mask & !(BTRFS << 8);
        let differs = argument(1, ScmpCmpMaskedEq, mask, Some(other))?;
        rules.push(rule(words("ioctl"), vec![differs])?);
    }
    for request in CLONE_FILES {
        let same = argument(1, ScmpCmpMaskedEq, 0xffff_ffff, Some(request))?;
        rules.push(rule(words("ioctl"), vec![same])?);
    }
    // personality(2): only the harmless ones: default, 32-bit uname, their unions, and the query.
    for value in [0x0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff] {
        rules.push(rule(
            words("personality"),
            vec![argument(0, ScmpCmpEq, value, None)?],
        )?);
    }
    // Plain sockets, UNIX, IPv4, IPv6, netlink; not AF_VSOCK (reaches the hypervisor), AF_ALG, packet of other worlds.
    for family in [1, 2, 10, 16] {
        rules.push(rule(
            words("socket"),
            vec![argument(0, ScmpCmpEq, family, None)?],
        )?);
    }
    if capabilities.contains(&13) {
        rules.push(rule(words("socket"), vec![argument(0, ScmpCmpEq, 17, None)?])?);
    }
    if !admin {
        // Threads and processes yes, new namespaces no. On s390 the flags are the second argument.
        let flags = usize::from(machine == "s390x");
        rules.push(rule(
            words("clone"),
            vec![argument(flags, ScmpCmpMaskedEq, CLONE_NAMESPACES, Some(0))?],
        )?);
        // clone3 hides its flags behind a pointer that no filter can follow: ENOSYS makes C libraries use clone.
        rules.push(
            LinuxSyscallBuilder::default()
                .names(vec!["clone3".to_owned()])
                .action(LinuxSeccompAction::ScmpActErrno)
                .errno_ret(ENOSYS)
                .build()?,
        );
    }
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(EPERM)
        .architectures(architectures(machine))
        .syscalls(rules)
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::caps;
    use proptest::prelude::*;

    fn allows(profile: &LinuxSeccomp, name: &str) -> bool {
        profile.syscalls().as_ref().unwrap().iter().any(|rule| {
            rule.action() == LinuxSeccompAction::ScmpActAllow
                && rule.args().is_none()
                && rule.names().iter().any(|n| n == name)
        })
    }

    #[test]
    fn the_default_refuses_what_reaches_the_kernel_or_others() {
        let set = caps::resolve(&[], &[]).unwrap();
        let default = profile(&set, "x86_64").unwrap();
        assert_eq!(default.default_action(), LinuxSeccompAction::ScmpActErrno);
        for name in "mount umount2 unshare setns pivot_root keyctl add_key request_key bpf ptrace process_vm_readv \
            process_vm_writev kexec_load init_module finit_module delete_module swapon swapoff reboot settimeofday \
            clock_settime io_uring_setup io_uring_enter userfaultfd perf_event_open open_by_handle_at iopl ioperm acct \
            quotactl syslog nfsservctl lookup_dcookie move_pages mbind fsopen fsmount open_tree move_mount \
            mount_setattr clone clone3 socket personality vm86 kcmp pidfd_getfd uselib ustat sysfs _sysctl"
            .split_whitespace()
        {
            assert!(!allows(&default, name), "{name} must not be open without condition");
        }
        for name in "read write openat execve exit_group mmap futex epoll_wait rt_sigaction wait4 fork vfork getrandom \
            statx clock_gettime nanosleep prctl seccomp rseq sendmsg chroot"
            .split_whitespace()
        {
            assert!(allows(&default, name), "ordinary programs need {name}");
        }
    }

    /// As the kernel judges a request: the rules are one or the other.
    fn allows_request(profile: &LinuxSeccomp, request: u64) -> bool {
        let rules = profile.syscalls().as_ref().unwrap().iter();
        let mut of = rules.filter(|rule| rule.names().iter().any(|name| name == "ioctl"));
        of.any(|rule| {
            let args = rule.args().as_deref().unwrap_or_default();
            args.iter().all(|arg| {
                assert_eq!(
                    (arg.index(), arg.op()),
                    (1, LinuxSeccompOperator::ScmpCmpMaskedEq)
                );
                request & arg.value() == arg.value_two().unwrap()
            })
        })
    }

    #[test]
    fn r1_no_request_to_btrfs_gets_through_that_could_make_a_place_without_a_limit() {
        for capabilities in [BTreeSet::new(), (0..41).collect()] {
            let made = profile(&capabilities, "x86_64").unwrap();
            for upper in [0, 1 << 32, 0xffff_ffff << 32] {
                for kind in 0..=255u64 {
                    for number in [0, 1, 14, 15, 24, 43, 255] {
                        for size in [0x0000_0000, 0x5000_0000, 0xc018_0000] {
                            let request = upper | size | (kind << 8) | number;
                            assert_eq!(allows_request(&made, request), kind != BTRFS, "{request:x}");
                        }
                    }
                }
                for request in CLONE_FILES {
                    assert!(allows_request(&made, upper | request));
                }
            }
        }
    }

    #[test]
    fn a_capability_opens_its_calls_and_no_others() {
        let bare = profile(&BTreeSet::new(), "x86_64").unwrap();
        for (capability, list) in WITH_CAPABILITY {
            let given = profile(&BTreeSet::from([capability]), "x86_64").unwrap();
            for name in list.split_whitespace() {
                assert!(!allows(&bare, name), "{name}");
                assert!(allows(&given, name), "{name}");
            }
        }
        let full: BTreeSet<u8> = (0..41).collect();
        for never in ["keyctl", "io_uring_setup", "userfaultfd", "kexec_load"] {
            assert!(!allows(&profile(&full, "x86_64").unwrap(), never), "{never}");
        }
    }

    proptest! {
        #[test]
        fn whatever_the_capabilities_default_is_refusal(set in proptest::collection::btree_set(0u8..41, 0..41)) {
            for machine in ["x86_64", "aarch64", "riscv64", "s390x", "mips"] {
                let made = profile(&set, machine).unwrap();
                prop_assert_eq!(made.default_action(), LinuxSeccompAction::ScmpActErrno);
                prop_assert!(!made.architectures().as_ref().unwrap().is_empty());
            }
        }
    }
}
