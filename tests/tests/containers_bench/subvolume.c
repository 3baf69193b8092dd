/* Makes a subvolume in the folder it is started in and ends with the error's number. Without any library: it runs in any image. */
#if defined(__x86_64__)
enum { OPEN = 257, IOCTL = 16, EXIT = 60 };
static long call(long n, long a, long b, long c, long d) {
    register long r10 __asm__("r10") = d;
    __asm__ volatile("syscall" : "+a"(n) : "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
    return n;
}
#elif defined(__aarch64__)
enum { OPEN = 56, IOCTL = 29, EXIT = 93 };
static long call(long n, long a, long b, long c, long d) {
    register long x8 __asm__("x8") = n;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
    return x0;
}
#endif

static struct { long long fd; char name[4088]; } arguments = {0, "sub"};

void _start(void) {
    long here = call(OPEN, -100, (long)".", 0, 0);
    long made = call(IOCTL, here, 0x5000940e, (long)&arguments, 0);
    call(EXIT, -made, 0, 0, 0);
}
