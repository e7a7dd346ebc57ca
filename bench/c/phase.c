// Marks where a phase of a program begins: callgrind starts a new count whenever phase_begins is entered
// (--dump-before=phase_begins). Python calls mark_phase with ctypes; callgrind does not see that call as one, because
// libffi makes it on a stack of its own, so it is the call inside that counts.
__attribute__((noinline)) void phase_begins(void)
{
    __asm__ volatile("");
}

void mark_phase(void)
{
    phase_begins();
    __asm__ volatile(""); // or the compiler would make a jump of the call
}
