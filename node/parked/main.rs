//! What a container's first process is until it is started: a page of code that says it is there, waits
//! for one byte and then becomes the container's program. By then the container is whole; nothing is
//! left to be done but this.
//!
//! It is a program of its own because hundreds of containers wait on a node: a process that was forked
//! to build one keeps a quarter of a megabyte of what building took, and this one 24 KB.
//!
//! After its own name, `argv` holds the file to run and then that program's `argv`; the environment is
//! the program's. Descriptor 3 is the socket for both bytes. Without the standard library and without
//! libc: see `build.rs`.
#![no_std]
#![no_main]
// Loops stay loops: there is no libc whose functions they could become.
#![no_builtins]

use core::arch::{asm, global_asm};

/// Who is told, and tells.
const GO: usize = 3;
const STDERR: usize = 2;
/// What it is called meanwhile; no more than 15 letters.
const NAME: &[u8] = b"selvedge-parked\0";

const ENOENT: isize = -2;

/// A shell's exit codes.
const NOT_FOUND: usize = 127;
const NOT_RUN: usize = 126;

#[cfg(target_arch = "x86_64")]
mod call {
    pub const READ: usize = 0;
    pub const WRITE: usize = 1;
    pub const CLOSE: usize = 3;
    pub const EXECVE: usize = 59;
    pub const PRCTL: usize = 157;
    pub const EXIT_GROUP: usize = 231;
}

#[cfg(target_arch = "aarch64")]
mod call {
    pub const READ: usize = 63;
    pub const WRITE: usize = 64;
    pub const CLOSE: usize = 57;
    pub const EXECVE: usize = 221;
    pub const PRCTL: usize = 167;
    pub const EXIT_GROUP: usize = 94;
}

// The kernel begins here, with `argc` on top of the stack.
#[cfg(target_arch = "x86_64")]
global_asm!(
    ".globl _start",
    "_start:",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {wait}",
    wait = sym wait
);

#[cfg(target_arch = "aarch64")]
global_asm!(
    ".globl _start",
    "_start:",
    "mov x0, sp",
    "bl {wait}",
    wait = sym wait
);

/// # Safety
/// The arguments must be what the system call `number` takes.
#[cfg(target_arch = "x86_64")]
unsafe fn system(number: usize, one: usize, two: usize, three: usize) -> isize {
    let result;
    // SAFETY: the caller's; the kernel changes these registers only.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") one,
            in("rsi") two,
            in("rdx") three,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// # Safety
/// The arguments must be what the system call `number` takes.
#[cfg(target_arch = "aarch64")]
unsafe fn system(number: usize, one: usize, two: usize, three: usize) -> isize {
    let result;
    // SAFETY: the caller's; the kernel changes this register only.
    unsafe {
        asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") one => result,
            in("x1") two,
            in("x2") three,
        );
    }
    result
}

/// `stack` points at `argc`, behind which the kernel put `argv` and the environment, each ended by null.
unsafe extern "C" fn wait(stack: *const usize) -> ! {
    // SAFETY: the kernel made the stack so, and its strings end with zero.
    unsafe {
        let argv = stack.add(1);
        let environment = argv.add(*stack + 1);
        let (file, program) = (*argv.add(1), argv.add(2));
        const PR_SET_NAME: usize = 15;
        system(call::PRCTL, PR_SET_NAME, NAME.as_ptr() as usize, 0);
        let mut byte = 0_u8;
        let byte = (&raw mut byte) as usize;
        system(call::WRITE, GO, byte, 1);
        // No signal has a handler here that could interrupt this.
        if system(call::READ, GO, byte, 1) != 1 {
            // Nobody is left who could start it.
            exit(NOT_RUN);
        }
        system(call::CLOSE, GO, 0, 0);
        let error = system(call::EXECVE, file, program as usize, environment as usize);
        say(b"selvedge: cannot run `");
        say(text(*program));
        say(b"`: ");
        say(reason(error));
        say(b"\n");
        exit(if error == ENOENT { NOT_FOUND } else { NOT_RUN })
    }
}

fn say(words: &[u8]) {
    // SAFETY: writes bytes that live through the call.
    unsafe { system(call::WRITE, STDERR, words.as_ptr() as usize, words.len()) };
}

/// # Safety
/// `at` must be the address of a string that ends with zero, or null.
unsafe fn text(at: usize) -> &'static [u8] {
    let start = at as *const u8;
    let mut length = 0;
    // SAFETY: the caller's.
    unsafe {
        while !start.is_null() && *start.add(length) != 0 {
            length += 1;
        }
        match length {
            0 => &[],
            _ => core::slice::from_raw_parts(start, length),
        }
    }
}

fn reason(error: isize) -> &'static [u8] {
    match error {
        ENOENT => b"it, or what it is run by, is not in the image",
        -7 => b"its arguments and environment are too long",
        -8 => b"it is no program for this machine",
        -12 => b"there is no memory for it",
        -13 => b"it may not be executed",
        -40 => b"its links lead in circles",
        _ => b"the kernel refuses it",
    }
}

fn exit(code: usize) -> ! {
    // SAFETY: does not return.
    unsafe { system(call::EXIT_GROUP, code, 0, 0) };
    loop {}
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(NOT_RUN)
}
