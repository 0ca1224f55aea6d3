/*
 * What a decoder that has been taken over would try. In: the name of one attempt, or none for all of them and then to spin.
 * Out: 0 when an attempt came through, 42 when all ways of it failed; how, on standard error.
 *
 * Compiled by the test with SECRET (a file it may not read), MARKER (a directory it may not write to), PORT (where somebody
 * listens on 127.0.0.1). OUTSIDE in the environment says that nothing confines it, so that it spares the test itself.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static int came_through;
int main(int count, char **words);

static void tried(const char *way, long result) {
    if (result >= 0) came_through = 1;
    fprintf(stderr, "%s: %s\n", way, result >= 0 ? "CAME THROUGH" : strerror(errno));
}

/* Opening counts when something can be read by it. */
static void tried_to_open(const char *way, int fd) {
    char byte;
    tried(way, fd < 0 ? fd : read(fd, &byte, 1) == 1 ? 0 : -1);
}

struct how { unsigned long long flags, mode, resolve; };

static void open_files(void) {
    struct how how = {O_RDONLY, 0, 0};
    tried_to_open("open", open(SECRET, O_RDONLY));
    tried_to_open("openat", openat(AT_FDCWD, SECRET, O_RDONLY | O_NOFOLLOW));
    tried_to_open("raw openat", (int)syscall(SYS_openat, AT_FDCWD, SECRET, O_RDONLY));
    tried_to_open("openat2", (int)syscall(437, AT_FDCWD, SECRET, &how, sizeof how));
    tried_to_open("by way of /proc/self/root", open("/proc/self/root" SECRET, O_RDONLY));
    tried_to_open("by way of the libraries", open("/usr/lib/../.." SECRET, O_RDONLY));
    tried_to_open("/etc/passwd", open("/etc/passwd", O_RDONLY));
    tried_to_open("its own environment", open("/proc/self/environ", O_RDONLY));
    tried_to_open("the server's memory map", open("/proc/1/maps", O_RDONLY));
    tried("O_PATH", open(SECRET, O_PATH));
    tried("a hard link", link(SECRET, MARKER "/link"));
    /* Never mount(2) of "/" here: run outside of the sandbox as root it succeeds, and removing MARKER afterwards removes the machine's
     * files (it did: /etc was lost and had to be restored). A mount that cannot succeed shows as much. */
    tried("mount", syscall(SYS_mount, "none", MARKER "/nowhere", "tmpfs", 0, NULL) == 0 || errno == ENOENT ? 0 : -1);
    tried("chroot", chroot(MARKER));
}

static void connect_out(void) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    struct sockaddr_un local = {.sun_family = AF_UNIX, .sun_path = "/run/dbus/system_bus_socket"};
    int fd;
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    fd = socket(AF_INET, SOCK_STREAM, 0);
    tried("a TCP socket", fd);
    tried("connecting", fd < 0 ? fd : connect(fd, (struct sockaddr *)&to, sizeof to));
    fd = socket(AF_INET, SOCK_DGRAM, 0);
    tried("a datagram", fd < 0 ? fd : sendto(fd, "x", 1, 0, (struct sockaddr *)&to, sizeof to));
    tried("an IPv6 socket", socket(AF_INET6, SOCK_STREAM, 0));
    tried("a raw socket", socket(AF_INET, SOCK_RAW, IPPROTO_ICMP));
    tried("a netlink socket", socket(AF_NETLINK, SOCK_RAW, 0));
    fd = socket(AF_UNIX, SOCK_STREAM, 0);
    tried("a local socket", fd);
    tried("connecting locally", fd < 0 ? fd : connect(fd, (struct sockaddr *)&local, sizeof local));
    tried("a virtual machine's socket", socket(40, SOCK_STREAM, 0));
    tried("io_uring", syscall(425, 8, calloc(1, 120)));
}

static void leave(long pid) {
    if (pid == 0) {
        close(open(MARKER "/child", O_CREAT | O_WRONLY, 0600));
        _exit(0);
    }
    if (pid > 0) waitpid((pid_t)pid, NULL, 0);
}

static void start_processes(void) {
    unsigned long long arguments[11] = {0, 0, 0, 0, SIGCHLD};
    long pid;
    pid = fork(), tried("fork", pid), leave(pid);
    pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0), tried("clone", pid), leave(pid);
    pid = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0), tried("clone into a namespace", pid), leave(pid);
    pid = syscall(435, arguments, sizeof arguments), tried("clone3", pid), leave(pid);
#ifdef SYS_vfork
    pid = syscall(SYS_fork), tried("raw fork", pid), leave(pid);
#endif
    tried("a namespace", unshare(CLONE_NEWUSER));
}

/* Each in a child where that can be had, so that the first does not end the test. */
static void execute(const char *way, int fd, const char *path, int flags) {
    char *const words[] = {"true", NULL};
    char *const none[] = {NULL};
    pid_t pid = fork();
    int status = 0;
    if (pid <= 0) {
        syscall(SYS_execveat, fd, path, words, none, flags);
        tried(way, -1);
        if (pid == 0) _exit(1);
        return;
    }
    waitpid(pid, &status, 0);
    tried(way, WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -1);
}

static void start_programs(void) {
    /* The loader is a file it may read, and the number is the one it was started by itself. */
    const char *loader = access("/lib64/ld-linux-x86-64.so.2", F_OK) == 0 ? "/lib64/ld-linux-x86-64.so.2" : "/lib/ld-linux-aarch64.so.1";
    int readable = open(loader, O_RDONLY);
    char *const words[] = {"true", NULL};
    execute("execveat", AT_FDCWD, "/bin/true", 0);
    execute("execveat by descriptor", open("/bin/true", O_PATH), "", AT_EMPTY_PATH);
    execute("execveat of the loader", readable, "", AT_EMPTY_PATH);
    if (dup2(readable, 200) == 200 || dup3(readable, 200, O_CLOEXEC) == 200 || fcntl(readable, F_DUPFD, 200) == 200 ||
        fcntl(readable, F_DUPFD_CLOEXEC, 200) == 200) {
        tried("a descriptor of that number", 0);
    }
    execute("execveat by that number", 200, "", AT_EMPTY_PATH);
    if (getenv("OUTSIDE") == NULL) tried("execve", execve("/bin/true", words, words + 1));
}

static void write_files(void) {
    char byte = 'x';
    int fd = open(MARKER "/written", O_CREAT | O_WRONLY, 0600);
    tried("a new file", fd < 0 ? fd : write(fd, "x", 1));
    tried("open to append", open(SECRET, O_WRONLY | O_APPEND));
    tried("open to truncate", open(SECRET, O_RDONLY | O_TRUNC));
    tried("a nameless file", open(MARKER, O_TMPFILE | O_RDWR, 0600));
    tried("truncate", truncate(SECRET, 0));
    tried("a directory", mkdir(MARKER "/made", 0700));
    tried("a pipe by name", mkfifo(MARKER "/fifo", 0700));
    tried("a symbolic link", symlink(SECRET, MARKER "/symbolic"));
    tried("a rename", rename(SECRET, MARKER "/renamed"));
    tried("a removal", unlink(SECRET));
    tried("a change of mode", chmod(SECRET, 0777));
    tried("a file in memory", syscall(SYS_memfd_create, "x", 0));
    signal(SIGXFSZ, SIG_IGN);
    tried("its own input", pwrite(0, &byte, 1, 0));
    tried("its own input, mapped", mmap(NULL, 1, PROT_READ | PROT_WRITE, MAP_SHARED, 0, 0) == MAP_FAILED ? -1 : 0);
}

static void allocate(void) {
    const size_t piece = 64 << 20;
    size_t got = 0;
    struct rlimit no_limit = {RLIM_INFINITY, RLIM_INFINITY};
    tried("raising the limit", setrlimit(RLIMIT_AS, &no_limit));
    while (got < (10ULL << 30)) {
        void *memory = mmap(NULL, piece, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) break;
        got += piece;
    }
    tried("10 GB", got >= (10ULL << 30) ? 0 : -1);
}

static void harm_others(void) {
    pid_t server = getppid();
    char taken[8];
    struct iovec mine = {taken, sizeof taken}, theirs = {(void *)main, sizeof taken};
    tried("a signal to the server", kill(server, 0));
    if (getenv("OUTSIDE") != NULL) return;
    tried("a signal to its group", kill(-server, 0));
    tried("a signal to one of its threads", syscall(SYS_tgkill, server, server, 0));
    tried("a queued signal", syscall(SYS_rt_tgsigqueueinfo, server, server, 0, NULL));
    tried("the server's memory", process_vm_readv(server, &mine, 1, &theirs, 1, 0));
    tried("tracing the server", ptrace(PTRACE_SEIZE, server, NULL, NULL));
    tried("a descriptor of the server's process", syscall(434, server, 0));
    tried("the server's priority", setpriority(PRIO_PROCESS, (id_t)server, 19));
    tried("the server's limits", syscall(SYS_prlimit64, server, RLIMIT_NOFILE, NULL, &(struct rlimit){0}));
    tried("keys", syscall(SYS_keyctl, 0, -3, 1));
    tried("the kernel's filters", syscall(SYS_bpf, 0, NULL, 0) == 0 || errno == EFAULT || errno == EINVAL ? 0 : -1);
    tried("shared memory", syscall(SYS_shmget, 0, 4096, 01600));
}

static void spin(void) {
    for (volatile unsigned long turn = 0;; turn++) {}
}

int main(int count, char **words) {
    static const struct { const char *name; void (*attempt)(void); } attempts[] = {
        {"open", open_files}, {"connect", connect_out}, {"fork", start_processes}, {"exec", start_programs},
        {"write", write_files}, {"allocate", allocate}, {"harm", harm_others}, {"spin", spin},
    };
    int known = 0;
    for (size_t i = 0; i < sizeof attempts / sizeof *attempts; i++) {
        if (count == 2 && strcmp(words[1], attempts[i].name) == 0) known = 1, attempts[i].attempt();
    }
    for (size_t i = 0; !known && i < sizeof attempts / sizeof *attempts; i++) attempts[i].attempt();
    return came_through ? 0 : 42;
}
