//! The layers Linux has, put on one after another, and the start of the program beneath them.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, PathBeneath, RestrictionStatus, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::UnshareFlags;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::{Confinement, Layers, limit_resources};

/// The number the program is opened as: above [`super::MAX_OPEN_FILES`], so that no descriptor of its own ever has it.
const PROGRAM_FD: i32 = 200;

/// Where the parts of dynamically linked programs lie. Read-only, and nothing of an operator's is in them.
const LIBRARIES: [&str; 11] = [
    "/lib",
    "/lib32",
    "/lib64",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/local/lib64",
    "/nix/store",
    "/gnu/store",
    "/etc/ld.so.cache",
];

/// The opened program.
pub(super) struct Program {
    file: OwnedFd,
    name: PathBuf,
}

/// Puts on every layer this system has.
pub(super) fn confine(confinement: &Confinement) -> io::Result<(Layers, Program)> {
    close_inherited()?;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let opened = open(&confinement.program, flags, Mode::empty())?;
    let file = rustix::io::fcntl_dupfd_cloexec(&opened, PROGRAM_FD)?;
    drop(opened);
    if file.as_raw_fd() != PROGRAM_FD {
        return Err(io::Error::other("the program's descriptor is taken"));
    }
    let network_namespace = leave_the_network();
    // After the namespace, for a change of credentials takes it back.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::thread::set_no_new_privs(true)?;
    let landlock = hide_files(&file, &confinement.program);
    limit_resources(confinement)?;
    let program = Program {
        file,
        name: confinement.program.clone(),
    };
    let seccomp = filter()
        .ok()
        .is_some_and(|filter| seccompiler::apply_filter(&filter).is_ok());
    let layers = Layers {
        limits: true,
        no_new_privileges: true,
        network_namespace,
        landlock,
        seccomp,
    };
    Ok((layers, program))
}

/// Closes what the server's own parent left open in it, and the server in us.
fn close_inherited() -> io::Result<()> {
    let listed = std::fs::read_dir("/proc/self/fd")?;
    let numbers: Vec<i32> = listed
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    numbers
        .into_iter()
        .filter(|&number| number > 2)
        .for_each(close);
    Ok(())
}

#[expect(
    unsafe_code,
    reason = "descriptors nobody in this process owns can only be named by number"
)]
fn close(number: i32) {
    // SAFETY: this process has opened nothing that it still uses, so nobody's descriptor is closed under them; a number that is not
    // open, such as the one of the listing above, is an error without effect.
    let _ = unsafe { libc::close(number) };
}

/// An empty network namespace, in a user namespace of its own, which is what lets an ordinary user have one. No user is mapped into it.
fn leave_the_network() -> bool {
    let namespaces = UnshareFlags::NEWUSER | UnshareFlags::NEWNET | UnshareFlags::NEWIPC;
    unshare(namespaces) || unshare(UnshareFlags::NEWNET)
}

#[expect(unsafe_code, reason = "rustix counts all of unshare as unsafe")]
fn unshare(namespaces: UnshareFlags) -> bool {
    // SAFETY: what is unsafe is to unshare the table of descriptors under another thread's feet; this is neither.
    unsafe { rustix::thread::unshare_unsafe(namespaces) }.is_ok()
}

/// Hides every file but the program, its libraries and the video. Whether the kernel does so.
fn hide_files(program: &OwnedFd, path: &Path) -> bool {
    restrict(program, path).is_ok_and(|status| status.ruleset != RulesetStatus::NotEnforced)
}

fn restrict(program: &OwnedFd, path: &Path) -> Result<RestrictionStatus, RulesetError> {
    let abi = ABI::V6;
    let execute = AccessFs::ReadFile | AccessFs::Execute;
    // Conda, Homebrew and static bundles keep libraries beside their programs.
    let real = path.canonicalize().ok();
    let own = real.and_then(|path| Some(path.parent()?.parent()?.join("lib")));
    let places = LIBRARIES.iter().map(PathBuf::from).chain(own);
    Ruleset::default()
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?
        // To start a program the kernel opens it and its interpreter, which is one of the libraries.
        .add_rule(PathBeneath::new(program.as_fd(), execute))?
        .add_rules(path_beneath_rules(places, execute))?
        .add_rule(PathBeneath::new(io::stdin().as_fd(), AccessFs::ReadFile))?
        .restrict_self()
}

/// System calls of a decoder that are harmless whatever their arguments.
#[rustfmt::skip]
const HARMLESS: [libc::c_long; 62] = [
    // Its streams, and reading files it was let open.
    libc::SYS_read, libc::SYS_readv, libc::SYS_pread64, libc::SYS_write, libc::SYS_writev, libc::SYS_lseek, libc::SYS_close,
    libc::SYS_fstat, libc::SYS_newfstatat, libc::SYS_statx, libc::SYS_fstatfs, libc::SYS_faccessat, libc::SYS_faccessat2,
    libc::SYS_readlinkat, libc::SYS_getcwd, libc::SYS_getdents64, libc::SYS_fadvise64, libc::SYS_dup, libc::SYS_dup3, libc::SYS_ppoll,
    libc::SYS_pselect6,
    // Memory.
    libc::SYS_mmap, libc::SYS_munmap, libc::SYS_mremap, libc::SYS_mprotect, libc::SYS_madvise, libc::SYS_brk, libc::SYS_mincore,
    // Threads.
    libc::SYS_futex, libc::SYS_set_robust_list, libc::SYS_get_robust_list, libc::SYS_rseq, libc::SYS_set_tid_address,
    libc::SYS_sched_yield, libc::SYS_sched_getaffinity, libc::SYS_sched_getparam, libc::SYS_sched_getscheduler, libc::SYS_membarrier,
    libc::SYS_gettid, libc::SYS_getpid, libc::SYS_getcpu, libc::SYS_exit, libc::SYS_exit_group, libc::SYS_restart_syscall,
    // Signals it gets.
    libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_sigaltstack,
    // Who and when it is.
    libc::SYS_getuid, libc::SYS_geteuid, libc::SYS_getgid, libc::SYS_getegid, libc::SYS_getrusage, libc::SYS_times, libc::SYS_uname,
    libc::SYS_sysinfo, libc::SYS_getrandom, libc::SYS_clock_gettime, libc::SYS_clock_getres, libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep, libc::SYS_gettimeofday,
];

/// What newer architectures no longer have.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const HARMLESS_OF_OLD: [libc::c_long; 9] = [
    libc::SYS_stat, libc::SYS_lstat, libc::SYS_access, libc::SYS_readlink, libc::SYS_dup2, libc::SYS_poll, libc::SYS_select,
    libc::SYS_time, libc::SYS_arch_prctl,
];
#[cfg(not(target_arch = "x86_64"))]
const HARMLESS_OF_OLD: [libc::c_long; 0] = [];

/// Opening in any other way than to read what is there; `O_PATH`, because Landlock does not see it.
const OPEN_TO_CHANGE: libc::c_int = libc::O_ACCMODE
    | libc::O_CREAT
    | libc::O_TRUNC
    | libc::O_APPEND
    | libc::O_PATH
    | (libc::O_TMPFILE & !libc::O_DIRECTORY);
/// What makes a thread of a clone.
const A_THREAD: libc::c_int =
    libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
const NAMESPACES: libc::c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;
/// `PR_SET_VMA`, with which C libraries name their memory.
const PR_SET_VMA: libc::c_int = 0x5356_4d41;

/// One condition on an argument, as the C type `int`.
fn int(argument: u8, operator: SeccompCmpOp, value: libc::c_int) -> Compiled<SeccompCondition> {
    let value = u64::from(value.cast_unsigned());
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
}

type Compiled<T> = Result<T, seccompiler::BackendError>;

/// The filter. Every other call fails as if the kernel did not have it, which C libraries expect of new calls and fall back from: so they
/// make threads by `clone`, whose flags can be looked at, for want of `clone3`, whose flags cannot.
fn filter() -> Compiled<BpfProgram> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = HARMLESS
        .iter()
        .chain(&HARMLESS_OF_OLD)
        .map(|&call| (call, Vec::new()))
        .collect();
    let bits = |argument, mask: libc::c_int, value| {
        int(
            argument,
            SeccompCmpOp::MaskedEq(u64::from(mask.cast_unsigned())),
            value,
        )
    };
    let mut allow = |call: libc::c_long, conditions: Vec<SeccompCondition>| -> Compiled<()> {
        let rule = SeccompRule::new(conditions)?;
        rules.entry(call).or_default().push(rule);
        Ok(())
    };
    allow(libc::SYS_openat, vec![bits(2, OPEN_TO_CHANGE, 0)?])?;
    #[cfg(target_arch = "x86_64")]
    allow(libc::SYS_open, vec![bits(1, OPEN_TO_CHANGE, 0)?])?;
    allow(
        libc::SYS_clone,
        vec![bits(0, A_THREAD | NAMESPACES, A_THREAD)?],
    )?;
    for operation in [
        libc::F_GETFD,
        libc::F_SETFD,
        libc::F_GETFL,
        libc::F_DUPFD_CLOEXEC,
    ] {
        allow(libc::SYS_fcntl, vec![int(1, SeccompCmpOp::Eq, operation)?])?;
    }
    for option in [libc::PR_SET_NAME, libc::PR_CAPBSET_READ, PR_SET_VMA] {
        allow(libc::SYS_prctl, vec![int(0, SeccompCmpOp::Eq, option)?])?;
    }
    // Reading one's own limits, not setting any.
    let no_new_limit = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
    allow(
        libc::SYS_prlimit64,
        vec![int(0, SeccompCmpOp::Eq, 0)?, no_new_limit],
    )?;
    // Signals to itself, with which `abort` ends it.
    let own = rustix::process::getpid().as_raw_nonzero().get();
    for call in [libc::SYS_kill, libc::SYS_tgkill] {
        allow(call, vec![int(0, SeccompCmpOp::Eq, own)?])?;
    }
    // The one start; see the descriptor's constant.
    let by_descriptor = vec![
        int(0, SeccompCmpOp::Eq, PROGRAM_FD)?,
        int(4, SeccompCmpOp::Eq, libc::AT_EMPTY_PATH)?,
    ];
    allow(libc::SYS_execveat, by_descriptor)?;
    let unknown = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, unknown, SeccompAction::Allow, architecture)?.try_into()
}

impl Program {
    /// Starts the program in this process's place, with an empty environment. Returns only when that fails.
    pub(super) fn become_it(&self, args: &[OsString]) -> io::Error {
        let name = self.name.as_os_str();
        let words: Result<Vec<CString>, _> = std::iter::once(name)
            .chain(args.iter().map(OsString::as_os_str))
            .map(|word: &OsStr| CString::new(word.as_bytes()))
            .collect();
        let Ok(words) = words else {
            return io::ErrorKind::InvalidInput.into();
        };
        let mut pointers: Vec<*const libc::c_char> =
            words.iter().map(|word| word.as_ptr()).collect();
        pointers.push(std::ptr::null());
        execute(&self.file, &pointers)
    }
}

#[expect(
    unsafe_code,
    reason = "the standard library starts programs by path only"
)]
fn execute(program: &OwnedFd, arguments: &[*const libc::c_char]) -> io::Error {
    let environment: [*const libc::c_char; 1] = [std::ptr::null()];
    // SAFETY: the path is empty and ends with a zero, both lists end with a null pointer, and the strings they point to outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    io::Error::last_os_error()
}
