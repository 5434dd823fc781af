// SPDX-License-Identifier: Apache-2.0

//! Whatever parses as a configuration is converted or refused, never a panic.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use proptest::prelude::*;
use protobuf::{Message, MessageField};
use protocols::{
    convert::{process_from_wire, resources_from_wire, spec_from_wire},
    oci,
};

/// Words that some enum-like field knows, and some that none does.
const WORDS: [&str; 24] = [
    "",
    "a",
    "b",
    "c",
    "p",
    "rwm",
    "-1",
    "pid",
    "network",
    "CAP_KILL",
    "\"KILL\"",
    "\"",
    "CAP_",
    "RLIMIT_CPU",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_TRACE",
    "SCMP_ARCH_X86_64",
    "SCMP_CMP_MASKED_EQ",
    "SCMP_CMP_EQ",
    "rslave",
    "2MB",
    "SECCOMP_FILTER_FLAG_LOG",
    "\u{fffd}",
    "SECCOMP_FILTER_FLAG_TSYNC",
];

fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => proptest::sample::select(&WORDS[..]).prop_map(str::to_owned),
        1 => any::<String>(),
    ]
}

fn words() -> impl Strategy<Value = Vec<String>> {
    proptest::collection::vec(word(), 0..4)
}

fn number() -> impl Strategy<Value = i64> {
    prop_oneof![Just(0), Just(-1), -3..3i64, any::<i64>()]
}

prop_compose! {
    fn process()(args in words(), caps in words(), limit in word(), score in number(), size in any::<u32>()) -> oci::Process {
        oci::Process {
            ConsoleSize: MessageField::some(oci::Box { Height: size, Width: size, ..Default::default() }),
            Args: args,
            Capabilities: MessageField::some(oci::LinuxCapabilities { Ambient: caps, ..Default::default() }),
            Rlimits: vec![oci::POSIXRlimit { Type: limit, ..Default::default() }],
            OOMScoreAdj: score,
            ..Default::default()
        }
    }
}

prop_compose! {
    fn resources()(typ in word(), access in word(), size in word(), n in number(), m in number(), w in any::<u32>())
        -> oci::LinuxResources {
        oci::LinuxResources {
            Devices: vec![oci::LinuxDeviceCgroup { Type: typ, Major: n, Minor: m, Access: access, ..Default::default() }],
            Memory: MessageField::some(oci::LinuxMemory { Limit: n, Swap: m, Kernel: n, Swappiness: w.into(), ..Default::default() }),
            CPU: MessageField::some(oci::LinuxCPU { Quota: n, RealtimeRuntime: m, ..Default::default() }),
            Pids: MessageField::some(oci::LinuxPids { Limit: m, ..Default::default() }),
            BlockIO: MessageField::some(oci::LinuxBlockIO { Weight: w, ..Default::default() }),
            HugepageLimits: vec![oci::LinuxHugepageLimit { Pagesize: size, Limit: m as u64, ..Default::default() }],
            ..Default::default()
        }
    }
}

prop_compose! {
    fn seccomp()(default in word(), archs in words(), flags in words(), action in word(), op in word(),
                 errno in any::<Option<u32>>(), index in number()) -> oci::LinuxSeccomp {
        oci::LinuxSeccomp {
            DefaultAction: default,
            Architectures: archs,
            Flags: flags,
            Syscalls: vec![oci::LinuxSyscall {
                Action: action,
                ErrnoRet: errno.map(oci::linux_syscall::ErrnoRet::Errnoret),
                Args: vec![oci::LinuxSeccompArg { Index: index as u64, Op: op, ..Default::default() }],
                ..Default::default()
            }],
            ..Default::default()
        }
    }
}

prop_compose! {
    fn spec()(process in process(), resources in resources(), seccomp in seccomp(), ns in word(), dev in word(),
              propagation in word(), timeout in number()) -> oci::Spec {
        oci::Spec {
            Process: MessageField::some(process),
            Mounts: vec![Default::default()],
            Hooks: MessageField::some(oci::Hooks {
                Prestart: vec![oci::Hook { Timeout: timeout, ..Default::default() }],
                ..Default::default()
            }),
            Linux: MessageField::some(oci::Linux {
                Resources: MessageField::some(resources),
                Namespaces: vec![oci::LinuxNamespace { Type: ns, ..Default::default() }],
                Devices: vec![oci::LinuxDevice { Type: dev, Major: timeout, ..Default::default() }],
                Seccomp: MessageField::some(seccomp),
                RootfsPropagation: propagation,
                ..Default::default()
            }),
            ..Default::default()
        }
    }
}

/// Converts what parses; errors must have a text that fits into a message.
fn convert(bytes: &[u8]) {
    if let Ok(wire) = oci::Spec::parse_from_bytes(bytes)
        && let Err(error) = spec_from_wire(&wire)
    {
        assert!(error.to_string().len() < 200);
    }
}

proptest! {
    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        convert(&bytes);
    }

    #[test]
    fn any_words_and_numbers(wire in spec()) {
        convert(&wire.write_to_bytes()?);
    }

    #[test]
    fn damaged_messages(wire in spec(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()) {
        let mut bytes = wire.write_to_bytes()?;
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if cut {
            bytes.truncate(at);
        }
        convert(&bytes);
    }

    #[test]
    fn parts_alone(process in process(), resources in resources()) {
        let _ = process_from_wire(&process);
        let _ = resources_from_wire(&resources);
    }
}
