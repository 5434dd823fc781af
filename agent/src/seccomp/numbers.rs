// SPDX-License-Identifier: Apache-2.0
//! System call names and numbers: which calling conventions a machine's kernel serves, and what each calls by which number.

use oci_spec::runtime::Arch;

/// A machine that a guest runs on. Filters are compiled for the one this is built for; tests know both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Machine {
    #[cfg(any(test, target_arch = "x86_64"))]
    X86_64,
    #[cfg(any(test, target_arch = "aarch64"))]
    Aarch64,
}

impl Machine {
    #[cfg(target_arch = "x86_64")]
    pub const OWN: Self = Self::X86_64;
    #[cfg(target_arch = "aarch64")]
    pub const OWN: Self = Self::Aarch64;

    pub const fn native(self) -> &'static Abi {
        match self {
            #[cfg(any(test, target_arch = "x86_64"))]
            Self::X86_64 => &X86_64,
            #[cfg(any(test, target_arch = "aarch64"))]
            Self::Aarch64 => &AARCH64,
        }
    }

    /// The 32-bit convention that the same kernel may serve.
    pub const fn compat(self) -> &'static Abi {
        match self {
            #[cfg(any(test, target_arch = "x86_64"))]
            Self::X86_64 => &X86,
            #[cfg(any(test, target_arch = "aarch64"))]
            Self::Aarch64 => &ARM,
        }
    }

    /// How profiles name the conventions besides the native one: the 32-bit one, and x32.
    pub const fn listed_as(self) -> (Arch, Option<Arch>) {
        match self {
            #[cfg(any(test, target_arch = "x86_64"))]
            Self::X86_64 => (Arch::ScmpArchX86, Some(Arch::ScmpArchX32)),
            #[cfg(any(test, target_arch = "aarch64"))]
            Self::Aarch64 => (Arch::ScmpArchArm, None),
        }
    }

    /// The first number of a second convention under the native token: x32.
    pub const fn x32_bit(self) -> Option<u32> {
        match self {
            #[cfg(any(test, target_arch = "x86_64"))]
            Self::X86_64 => Some(0x4000_0000),
            #[cfg(any(test, target_arch = "aarch64"))]
            Self::Aarch64 => None,
        }
    }
}

/// A calling convention.
#[derive(Debug)]
pub(super) struct Abi {
    /// `AUDIT_ARCH_*`, what a filter is told.
    pub token: u32,
    /// Whether only the lower half of an argument means anything.
    pub narrow: bool,
    /// The name of call 0, of call 1 and so on, each ended by a newline.
    packed: &'static [u8],
    /// Calls far above the others.
    private: &'static [(&'static str, u32)],
    /// Calls that carry others.
    pub multiplexers: &'static [Multiplexer],
}

impl Abi {
    /// Every name with its number, in the order of the numbers.
    pub fn calls(&self) -> impl Iterator<Item = (&'static str, u32)> {
        let names = self.packed.split(|&byte| byte == b'\n');
        let names = names.map(|name| str::from_utf8(name).unwrap_or_default());
        names
            .zip(0..)
            .filter(|(name, _)| !name.is_empty())
            .chain(self.private.iter().copied())
    }
}

/// A call whose first argument says which call is meant, and whose others point to that call's arguments.
#[derive(Debug)]
pub(super) struct Multiplexer {
    pub name: &'static str,
    /// What of the first argument counts.
    pub mask: u64,
    pub carried: &'static [(u64, &'static str)],
}

/// The name that libseccomp and so profiles use, where the table has another.
const fn customary(name: &'static [u8]) -> &'static [u8] {
    match name {
        b"fstatat" => b"newfstatat",
        name => name,
    }
}

/// The names of a table of the crate `syscalls` in one text, built by the compiler: 4 KB where the table's own lookup takes 20.
macro_rules! packed {
    ($table:ident) => {{
        const COUNT: usize = syscalls::$table::Sysno::table_size();
        const fn name(number: usize) -> &'static [u8] {
            match syscalls::$table::Sysno::new(number) {
                Some(call) => customary(call.name().as_bytes()),
                None => &[],
            }
        }
        const fn size() -> usize {
            let (mut size, mut number) = (0, 0);
            while number < COUNT {
                size += name(number).len() + 1;
                number += 1;
            }
            size
        }
        const fn pack() -> [u8; size()] {
            let mut text = [b'\n'; size()];
            let (mut at, mut number) = (0, 0);
            while number < COUNT {
                let name = name(number);
                let mut i = 0;
                while i < name.len() {
                    text[at + i] = name[i];
                    i += 1;
                }
                at += name.len() + 1;
                number += 1;
            }
            text
        }
        static TEXT: [u8; size()] = pack();
        &TEXT
    }};
}

#[cfg(any(test, target_arch = "x86_64"))]
static X86_64: Abi = Abi {
    token: 0xc000_003e,
    narrow: false,
    packed: packed!(x86_64),
    private: &[],
    multiplexers: &[],
};

#[cfg(any(test, target_arch = "aarch64"))]
static AARCH64: Abi = Abi {
    token: 0xc000_00b7,
    narrow: false,
    packed: packed!(aarch64),
    private: &[],
    multiplexers: &[],
};

#[cfg(any(test, target_arch = "x86_64"))]
static X86: Abi = Abi {
    token: 0x4000_0003,
    narrow: true,
    packed: packed!(x86),
    private: &[],
    multiplexers: &[
        // linux/net.h
        Multiplexer {
            name: "socketcall",
            mask: u32::MAX as u64,
            carried: &[
                (1, "socket"),
                (2, "bind"),
                (3, "connect"),
                (4, "listen"),
                (5, "accept"),
                (6, "getsockname"),
                (7, "getpeername"),
                (8, "socketpair"),
                (9, "send"),
                (10, "recv"),
                (11, "sendto"),
                (12, "recvfrom"),
                (13, "shutdown"),
                (14, "setsockopt"),
                (15, "getsockopt"),
                (16, "sendmsg"),
                (17, "recvmsg"),
                (18, "accept4"),
                (19, "recvmmsg"),
                (20, "sendmmsg"),
            ],
        },
        // linux/ipc.h; the upper half is a version that changes no call.
        Multiplexer {
            name: "ipc",
            mask: 0xffff,
            carried: &[
                (1, "semop"),
                (2, "semget"),
                (3, "semctl"),
                (4, "semtimedop"),
                (11, "msgsnd"),
                (12, "msgrcv"),
                (13, "msgget"),
                (14, "msgctl"),
                (21, "shmat"),
                (22, "shmdt"),
                (23, "shmget"),
                (24, "shmctl"),
            ],
        },
    ],
};

#[cfg(any(test, target_arch = "aarch64"))]
static ARM: Abi = Abi {
    token: 0x4000_0028,
    narrow: true,
    packed: packed!(arm),
    // asm/unistd.h, __ARM_NR_*.
    private: &[
        ("breakpoint", 0xf_0001),
        ("cacheflush", 0xf_0002),
        ("usr26", 0xf_0003),
        ("usr32", 0xf_0004),
        ("set_tls", 0xf_0005),
        ("get_tls", 0xf_0006),
    ],
    multiplexers: &[],
};

#[cfg(test)]
mod tests {
    use super::*;

    fn number(abi: &Abi, name: &str) -> Option<u32> {
        abi.calls().find(|call| call.0 == name).map(|call| call.1)
    }

    #[test]
    fn well_known_numbers() {
        for (abi, name, wanted) in [
            (&X86_64, "read", Some(0)),
            (&X86_64, "execve", Some(59)),
            (&X86_64, "clone3", Some(435)),
            (&X86_64, "socketcall", None),
            (&X86, "read", Some(3)),
            (&X86, "socketcall", Some(102)),
            (&X86, "socket", Some(359)),
            (&AARCH64, "read", Some(63)),
            (&AARCH64, "open", None),
            (&AARCH64, "newfstatat", Some(79)),
            (&ARM, "read", Some(3)),
            (&ARM, "socket", Some(281)),
            (&ARM, "set_tls", Some(0xf_0005)),
        ] {
            assert_eq!(number(abi, name), wanted, "{name} of {:#x}", abi.token);
        }
    }

    #[test]
    fn numbers_agree_with_libc() {
        for (name, wanted) in [
            ("openat2", libc::SYS_openat2),
            ("mount_setattr", libc::SYS_mount_setattr),
            ("seccomp", libc::SYS_seccomp),
            ("exit_group", libc::SYS_exit_group),
            ("bpf", libc::SYS_bpf),
        ] {
            let found = number(Machine::OWN.native(), name).map(i64::from);
            assert_eq!(found, Some(wanted), "{name}");
        }
    }

    #[test]
    fn numbers_go_up_and_names_are_unique() {
        for abi in [&X86_64, &X86, &AARCH64, &ARM] {
            let calls: Vec<_> = abi.calls().collect();
            assert!(calls.len() > 300, "{}", calls.len());
            assert!(calls.is_sorted_by(|a, b| a.1 < b.1));
            let names: std::collections::BTreeSet<_> = calls.iter().map(|call| call.0).collect();
            assert_eq!(names.len(), calls.len());
        }
    }
}
