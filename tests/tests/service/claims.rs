// SPDX-License-Identifier: Apache-2.0
//! Requests that claim what cannot be: absent parts, unknown words in every field that is an enumeration in disguise, ids with
//! characters that do not belong there. Each is an INVALID_ARGUMENT that names the word, and changes nothing.

use protocols::agent::{Device, ReadStreamRequest, Storage};
use protocols::oci;
use tests::container::Builder;
use tests::{Code, Service, expect_refusal, service_story, spec};

/// A change that makes a good request bad, and a part of the text that must say so.
type Claim = (&'static str, fn(Builder) -> Builder);

async fn expect_refused(agent: &Service, claims: &[Claim]) {
    for (number, (part, spoil)) in claims.iter().enumerate() {
        let id = format!("claim-{number}");
        let result = spoil(agent.container(&id))
            .try_create()
            .await
            .map(|c| c.id().to_owned());
        expect_refusal(result, Code::INVALID_ARGUMENT, part);
        agent.expect_alive().await;
        // The id is free again: nothing of the refused container is left.
        agent.container(&id).sh("exit 0").run().await.ok();
    }
}

#[test]
fn absent_parts() {
    service_story(async {
        let agent = Service::start().await;
        let claims: [Claim; 5] = [
            ("", |b| b.request(|r| r.OCI = None.into())),
            ("", |b| b.spec(|s| s.Process = None.into())),
            ("", |b| b.spec(|s| s.Root = None.into())),
            ("", |b| b.spec(|s| s.Linux = None.into())),
            ("", |b| b.process(|p| p.Args.clear())),
        ];
        expect_refused(&agent, &claims).await;
    });
}

#[test]
fn unknown_words_in_the_process() {
    service_story(async {
        let agent = Service::start().await;
        let claims: [Claim; 7] = [
            ("CAP_FLY", |b| b.capabilities(&["CAP_FLY"])),
            ("CAP_FLY", |b| {
                b.process(|p| {
                    p.Capabilities.mut_or_insert_default().Ambient = vec!["CAP_FLY".into()]
                })
            }),
            ("RLIMIT_LUCK", |b| {
                b.process(|p| {
                    let mut limit = oci::POSIXRlimit::new();
                    limit.Type = "RLIMIT_LUCK".to_owned();
                    p.Rlimits.push(limit);
                })
            }),
            ("", |b| b.process(|p| p.Cwd = "relative".to_owned())),
            ("", |b| {
                b.process(|p| p.Args = vec!["nul\0inside".to_owned()])
            }),
            ("", |b| b.process(|p| p.Env = vec!["NUL=\0".to_owned()])),
            ("", |b| b.process(|p| p.OOMScoreAdj = 100_000)),
        ];
        expect_refused(&agent, &claims).await;
    });
}

#[test]
fn unknown_words_in_the_linux_section() {
    service_story(async {
        let agent = Service::start().await;
        let claims: [Claim; 5] = [
            ("teleport", |b| {
                b.linux(|l| l.Namespaces.push(spec::namespace("teleport")))
            }),
            ("upward", |b| {
                b.linux(|l| l.RootfsPropagation = "upward".to_owned())
            }),
            ("q", |b| {
                b.linux(|l| {
                    let mut device = oci::LinuxDevice::new();
                    device.Path = "/dev/odd".to_owned();
                    device.Type = "q".to_owned();
                    l.Devices.push(device);
                })
            }),
            ("z", |b| {
                b.linux(|l| {
                    let mut rule = oci::LinuxDeviceCgroup::new();
                    rule.Type = "z".to_owned();
                    rule.Access = "rwm".to_owned();
                    l.Resources.mut_or_insert_default().Devices.push(rule);
                })
            }),
            ("rwx", |b| {
                b.linux(|l| {
                    let mut rule = oci::LinuxDeviceCgroup::new();
                    rule.Type = "c".to_owned();
                    rule.Access = "rwx".to_owned();
                    l.Resources.mut_or_insert_default().Devices.push(rule);
                })
            }),
        ];
        expect_refused(&agent, &claims).await;
    });
}

#[test]
fn unknown_words_in_the_seccomp_profile() {
    fn profile(change: fn(&mut oci::LinuxSeccomp)) -> oci::LinuxSeccomp {
        let mut profile = oci::LinuxSeccomp::new();
        profile.DefaultAction = "SCMP_ACT_ALLOW".to_owned();
        change(&mut profile);
        profile
    }
    fn rule(change: fn(&mut oci::LinuxSyscall)) -> oci::LinuxSyscall {
        let mut rule = oci::LinuxSyscall::new();
        rule.Names = vec!["mknod".to_owned()];
        rule.Action = "SCMP_ACT_ERRNO".to_owned();
        change(&mut rule);
        rule
    }
    service_story(async {
        let agent = Service::start().await;
        let claims: [Claim; 5] = [
            ("SCMP_ACT_DANCE", |b| {
                b.linux(|l| {
                    l.Seccomp = Some(profile(|p| p.DefaultAction = "SCMP_ACT_DANCE".into())).into()
                })
            }),
            ("SCMP_ARCH_PDP11", |b| {
                b.linux(|l| {
                    l.Seccomp =
                        Some(profile(|p| p.Architectures.push("SCMP_ARCH_PDP11".into()))).into()
                })
            }),
            ("SECCOMP_FILTER_FLAG_ODD", |b| {
                b.linux(|l| {
                    l.Seccomp =
                        Some(profile(|p| p.Flags.push("SECCOMP_FILTER_FLAG_ODD".into()))).into()
                })
            }),
            ("SCMP_ACT_SING", |b| {
                b.linux(|l| {
                    l.Seccomp = Some(profile(|p| {
                        p.Syscalls.push(rule(|r| r.Action = "SCMP_ACT_SING".into()))
                    }))
                    .into();
                })
            }),
            ("SCMP_CMP_MAYBE", |b| {
                b.linux(|l| {
                    l.Seccomp = Some(profile(|p| {
                        p.Syscalls.push(rule(|r| {
                            let mut arg = oci::LinuxSeccompArg::new();
                            arg.Op = "SCMP_CMP_MAYBE".to_owned();
                            r.Args.push(arg);
                        }));
                    }))
                    .into();
                })
            }),
        ];
        expect_refused(&agent, &claims).await;
    });
}

#[test]
fn mounts_that_make_no_sense() {
    service_story(async {
        let agent = Service::start().await;
        let claims: [Claim; 3] = [
            ("relative", |b| b.mount("relative", "tmpfs", "tmpfs", &[])),
            ("..", |b| b.mount("/a/../../b", "tmpfs", "tmpfs", &[])),
            ("", |b| b.linux(|l| l.MaskedPaths.push("relative".into()))),
        ];
        expect_refused(&agent, &claims).await;
    });
}

/// Fails, whatever the code: these are not wrong words but things that cannot be done.
#[test]
fn what_cannot_be_done_is_undone() {
    service_story(async {
        let agent = Service::start().await;
        let cannot: [fn(Builder) -> Builder; 6] = [
            |b| b.args(&["/no/such/program"]),
            |b| b.args(&["no-such-program"]),
            |b| b.bind("/mnt", "/no/such/source"),
            |b| b.mount("/mnt", "nothing", "no-such-fs", &[]),
            |b| b.root("/no/such/root"),
            |b| b.linux(|l| l.Namespaces[2].Path = "/no/such/namespace".to_owned()),
        ];
        for (number, spoil) in cannot.into_iter().enumerate() {
            let id = format!("cannot-{number}");
            let refusal = spoil(agent.container(&id)).try_create().await.err();
            let refusal = refusal.unwrap_or_else(|| panic!("case {number} was created"));
            assert!(refusal.code.is_some(), "case {number}: {refusal}");
            assert!(refusal.text.contains("no"), "case {number}: {refusal}");
            agent.expect_alive().await;
            agent.container(&id).sh("exit 0").run().await.ok();
        }
    });
}

/// The event loop opened them: a pipe's other end never came, and nobody was answered any more.
#[test]
fn bug_what_is_no_namespace_is_not_opened() {
    service_story(async {
        let agent = Service::start().await;
        let dir = tempfile::tempdir().expect("a temporary directory");
        let pipe = dir.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.expect("mkfifo").success());
        for path in [&*pipe.to_string_lossy(), "/dev/null", "/etc/passwd", "/"] {
            let path = path.to_owned();
            let result = agent
                .container("joins")
                .linux(|l| l.Namespaces[2].Path = path)
                .try_create()
                .await
                .map(drop);
            expect_refusal(result, Code::INVALID_ARGUMENT, "cannot be opened");
            agent.expect_alive().await;
        }
        let output = agent
            .container("joins")
            .linux(|l| {
                let kind = |n: &&mut oci::LinuxNamespace| n.Type == "uts";
                let uts = l.Namespaces.iter_mut().find(kind);
                uts.expect("a uts namespace").Path = "/proc/self/ns/uts".to_owned();
            })
            .sh("echo joined")
            .run()
            .await;
        assert_eq!(output.ok(), "joined");
    });
}

#[test]
fn container_ids_with_characters_that_do_not_belong() {
    service_story(async {
        let agent = Service::start().await;
        let long = "x".repeat(5000);
        let ids = [
            "",
            "x",
            ".",
            "..",
            "-a",
            "../x",
            "a/b",
            "a b",
            "a\nb",
            "a\0b",
            "/abs",
            "a/../../b",
            "\u{1f6a2}",
            &long,
            // The guest keeps files of its own there.
            "shared",
            "sandbox",
        ];
        for id in ids {
            let result = agent.container(id).try_create().await.map(drop);
            expect_refusal(result, Code::INVALID_ARGUMENT, "");
            agent.expect_alive().await;
        }
        for id in ["a.b", "a-b_c", "0x"] {
            agent.container(id).sh("exit 0").run().await.ok();
        }
    });
}

#[test]
fn unknown_drivers() {
    service_story(async {
        let agent = Service::start().await;
        let mut storage = Storage::new();
        storage.driver = "carrier-pigeon".to_owned();
        storage.mount_point = "/run/kata-containers/sandbox/storage/x".to_owned();
        let result = agent
            .container("store")
            .storage(storage.clone())
            .try_create()
            .await
            .map(drop);
        let first = result.expect_err("an unknown storage driver is refused");
        assert!(first.text.contains("carrier-pigeon"), "{first}");
        // The reference remembers the failed storage and lets the second attempt pass without mounting anything.
        let second = agent
            .container("store")
            .storage(storage)
            .try_create()
            .await
            .map(drop);
        assert_eq!(second.expect_err("also the second time").text, first.text);

        let mut device = Device::new();
        device.type_ = "carrier-pigeon".to_owned();
        device.container_path = "/dev/pigeon".to_owned();
        let result = agent
            .container("device")
            .request(|r| r.devices.push(device))
            .try_create()
            .await;
        let refusal = result
            .map(drop)
            .expect_err("an unknown device type is refused");
        assert!(refusal.code.is_some(), "{refusal}");
        agent.expect_alive().await;
    });
}

#[test]
fn a_huge_read_is_answered_with_what_there_is() {
    service_story(async {
        let agent = Service::start().await;
        let c = agent
            .container("modest")
            .sh("echo here; sleep 1000")
            .start()
            .await;
        let mut request = ReadStreamRequest::new();
        request.container_id = "modest".to_owned();
        request.len = u32::MAX;
        let answer = agent
            .rpc()
            .read_stdout(&request)
            .await
            .expect("a read of 4 GiB is a short read");
        assert_eq!(answer.data, b"here\n");
        c.kill_and_remove().await;
    });
}

#[test]
fn exec_ids_are_only_names() {
    service_story(async {
        let agent = Service::start().await;
        let c = agent
            .container("names")
            .args(&["sleep", "1000"])
            .start()
            .await;
        for id in ["../../x", "a b", "\u{1f6a2}", &"y".repeat(5000)] {
            let process = c.exec(&["echo", "hello"]).id(id).try_start().await;
            if let Ok(process) = process {
                assert_eq!(process.output().await.ok(), "hello");
            }
            agent.expect_alive().await;
        }
        c.kill_and_remove().await;
    });
}
