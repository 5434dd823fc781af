// SPDX-License-Identifier: Apache-2.0
//! What a container's process is given and what it is kept from.

use protocols::oci;
use tests::{Vm, spec, vm_story};

/// One line of `/proc/self/status`.
fn status<'a>(text: &'a str, name: &str) -> &'a str {
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("{name} is not in {text}"))
        .trim()
}

fn mask(text: &str, name: &str) -> u64 {
    u64::from_str_radix(status(text, name), 16).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Directories too: the reference binds a file over them, fails, and says nothing.
#[test]
fn masked_paths_hide_files_and_directories() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = vm
            .container("iso-masked")
            .linux(|l| {
                l.MaskedPaths
                    .extend(["/etc/passwd", "/sys/kernel", "/no/such/path"].map(str::to_owned))
            })
            .args(&["sleep", "100000"])
            .start()
            .await;
        let script = "for path in \"$@\"; do
                if test -d $path; then
                    test -z \"$(ls -A $path)\" || echo $path shows something
                    mkdir $path/x 2>/dev/null && echo $path is writable
                elif test -e $path; then
                    test -z \"$(head -c 1 $path 2>/dev/null)\" || echo $path shows something
                fi
            done; test -s /etc/passwd && echo passwd has a size; test -e /sys/class && echo looked";
        let mut args = vec!["sh", "-c", script, "sh", "/etc/passwd", "/sys/kernel"];
        args.extend(spec::MASKED);
        assert_eq!(c.exec(&args).run().await.ok(), "looked");
        c.kill_and_remove().await;
    });
}

#[test]
fn read_only_paths_are_read_only() {
    vm_story(async {
        let vm = Vm::shared().await;
        let script = "echo x > /proc/sys/kernel/hostname; echo 1 > /proc/sys/vm/swappiness; touch /root/x; mkdir /root/y
            ls /proc/sys/kernel/hostname";
        let output = vm
            .container("iso-ro")
            .linux(|l| l.ReadonlyPaths.push("/root".to_owned()))
            .capabilities(&spec::ALL_CAPABILITIES)
            .sh(script)
            .run()
            .await;
        assert_eq!(output.ok(), "/proc/sys/kernel/hostname");
        assert_eq!(
            output.stderr.matches("Read-only file system").count(),
            4,
            "{}",
            output.stderr
        );
    });
}

#[test]
fn a_read_only_root_has_writable_mounts() {
    vm_story(async {
        let vm = Vm::shared().await;
        let script = "touch /x /etc/x 2>&1 | grep -c 'Read-only file system'; touch /dev/shm/x && echo shm; cat /etc/hostname";
        let output = vm
            .container("iso-ro-root")
            .read_only_root()
            .sh(script)
            .run()
            .await;
        assert_eq!(output.ok(), "2\nshm\nimage");
        // The remount is the container's own: the root file system itself is as it was.
        vm.sh("iso-rw-root", "touch /root/x && rm /root/x")
            .await
            .ok();
    });
}

#[test]
fn mount_options_are_kept() {
    vm_story(async {
        let vm = Vm::shared().await;
        let output = vm
            .container("iso-options")
            .mount(
                "/mnt",
                "tmpfs",
                "tmpfs",
                &["ro", "nosuid", "nodev", "noexec", "size=64k", "mode=700"],
            )
            .mount("/home", "/tmp", "bind", &["rbind", "ro", "nosuid"])
            .sh("grep -E ' (/mnt|/home|/sys) ' /proc/self/mounts | cut -d ' ' -f 2,4")
            .run()
            .await;
        for line in output.ok().lines() {
            let (path, options) = line.split_once(' ').expect("two fields");
            let wanted: &[&str] = match path {
                "/mnt" => &["ro", "nosuid", "nodev", "noexec", "size=64k", "mode=700"],
                "/home" => &["ro", "nosuid"],
                _ => &["ro", "nosuid", "nodev", "noexec"],
            };
            for word in wanted {
                assert!(
                    options.split(',').any(|o| o == *word),
                    "{word} is not in {line}"
                );
            }
        }
        assert_eq!(output.stdout.lines().count(), 3, "{}", output.stdout);
    });
}

#[test]
fn the_usual_devices_are_there() {
    vm_story(async {
        let vm = Vm::shared().await;
        let script = "cd /dev; for d in null zero full random urandom tty; do test -c $d && stat -c '%n %t:%T %a' $d; done
            for l in fd stdin stdout stderr ptmx; do readlink $l; done; echo x > null && head -c 3 zero | wc -c; test -d shm -a -d pts && echo dirs";
        let output = vm.sh("iso-dev", script).await;
        let expected = "null 1:3 666\nzero 1:5 666\nfull 1:7 666\nrandom 1:8 666\nurandom 1:9 666\ntty 5:0 666\n\
            /proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n3\ndirs";
        assert_eq!(output.ok(), expected);
    });
}

fn device(
    path: &str,
    kind: &str,
    major: i64,
    minor: i64,
    mode: u32,
    owner: u32,
) -> oci::LinuxDevice {
    let mut device = oci::LinuxDevice::new();
    device.Path = path.to_owned();
    device.Type = kind.to_owned();
    device.Major = major;
    device.Minor = minor;
    device.FileMode = mode;
    device.UID = owner;
    device.GID = owner;
    device
}

/// A device of the spec may repeat a default one, which the reference refuses.
#[test]
fn devices_of_the_spec_are_made() {
    vm_story(async {
        let vm = Vm::shared().await;
        let output = vm
            .container("iso-own-dev")
            .linux(|l| {
                l.Devices.push(device("/dev/null", "c", 1, 3, 0o666, 0));
                l.Devices
                    .push(device("/dev/deep/down/zero", "c", 1, 5, 0o640, 1000));
                l.Devices.push(device("/dev/queue", "p", 0, 0, 0o600, 0));
            })
            .sh("stat -c '%n %t:%T %a %u:%g %F' /dev/null /dev/deep/down/zero /dev/queue")
            .run()
            .await;
        let expected = "/dev/null 1:3 666 0:0 character special file\n\
            /dev/deep/down/zero 1:5 640 1000:1000 character special file\n/dev/queue 0:0 600 0:0 fifo";
        assert_eq!(output.ok(), expected);
    });
}

#[test]
fn capabilities_are_those_of_the_spec() {
    vm_story(async {
        let vm = Vm::shared().await;
        let default = vm.sh("iso-caps", "cat /proc/self/status").await;
        let granted = spec::capability_mask(&spec::DEFAULT_CAPABILITIES);
        for set in ["CapBnd", "CapEff", "CapPrm"] {
            assert_eq!(mask(default.ok(), set), granted, "{set}");
        }
        assert_eq!(mask(default.ok(), "CapInh"), 0);
        assert_eq!(mask(default.ok(), "CapAmb"), 0);

        let none = vm
            .container("iso-nocaps")
            .capabilities(&[])
            .sh("cat /proc/self/status")
            .run()
            .await;
        for set in ["CapBnd", "CapEff", "CapPrm", "CapInh", "CapAmb"] {
            assert_eq!(mask(none.ok(), set), 0, "{set}");
        }

        let ambient = vm
            .container("iso-ambient")
            .process(|p| {
                p.User.mut_or_insert_default().UID = 1000;
                let caps = p.Capabilities.mut_or_insert_default();
                let name = vec!["CAP_NET_BIND_SERVICE".to_owned()];
                (caps.Inheritable, caps.Ambient) = (name.clone(), name);
            })
            .sh("cat /proc/self/status")
            .run()
            .await;
        let bind = spec::capability_mask(&["CAP_NET_BIND_SERVICE"]);
        for set in ["CapAmb", "CapEff", "CapInh"] {
            assert_eq!(
                mask(ambient.ok(), set),
                bind,
                "{set} of a user other than root"
            );
        }
    });
}

#[test]
fn privileges_limits_and_users_are_those_of_the_spec() {
    vm_story(async {
        let vm = Vm::shared().await;
        let output = vm
            .container("iso-user")
            .process(|p| {
                let user = p.User.mut_or_insert_default();
                user.UID = 1000;
                user.GID = 1001;
                user.AdditionalGids = vec![5, 1002];
                let mut files = oci::POSIXRlimit::new();
                files.Type = "RLIMIT_NOFILE".to_owned();
                files.Soft = 123;
                files.Hard = 456;
                p.Rlimits.push(files);
                p.OOMScoreAdj = 77;
            })
            .sh("cat /proc/self/status; ulimit -Sn; ulimit -Hn; cat /proc/self/oom_score_adj; id -u; id -g; id -G")
            .run()
            .await;
        assert_eq!(status(output.ok(), "Uid"), "1000\t1000\t1000\t1000");
        assert_eq!(status(output.ok(), "Gid"), "1001\t1001\t1001\t1001");
        assert_eq!(status(output.ok(), "Groups"), "5 1002");
        assert_eq!(status(output.ok(), "NoNewPrivs"), "1");
        assert_eq!(mask(output.ok(), "CapEff"), 0);
        assert!(
            output
                .ok()
                .ends_with("\n123\n456\n77\n1000\n1001\n1001 5 1002"),
            "{}",
            output.stdout
        );

        let plain = vm
            .container("iso-nnp")
            .process(|p| p.NoNewPrivileges = false)
            .sh("cat /proc/self/status")
            .run()
            .await;
        assert_eq!(status(plain.ok(), "NoNewPrivs"), "0");
    });
}

#[test]
fn an_exec_has_limits_of_its_own() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = vm
            .container("iso-exec")
            .args(&["sleep", "100000"])
            .start()
            .await;
        let output = c
            .exec(&["sh", "-c", "ulimit -Hn; cat /proc/self/oom_score_adj"])
            .process(|p| {
                let mut files = oci::POSIXRlimit::new();
                files.Type = "RLIMIT_NOFILE".to_owned();
                (files.Soft, files.Hard) = (99, 99);
                p.Rlimits.push(files);
                p.OOMScoreAdj = 500;
            })
            .run()
            .await;
        assert_eq!(output.ok(), "99\n500");
        c.kill_and_remove().await;
    });
}

/// PID 1 is protected from the out-of-memory killer; its containers must not inherit that (kata-containers#1111).
#[test]
fn containers_do_not_inherit_the_agents_protection() {
    vm_story(async {
        let vm = Vm::shared().await;
        assert_eq!(
            vm.sh("iso-oom", "cat /proc/self/oom_score_adj").await.ok(),
            "0"
        );
        let probe = vm.probe("iso-oom-probe").await;
        let own: i32 = probe
            .sh("cat /mnt/proc/1/oom_score_adj")
            .await
            .ok()
            .parse()
            .expect("a number");
        assert!(own <= -997, "{own}");
        probe.kill_and_remove().await;
    });
}

/// CVE-2024-21626: a descriptor of the outside that is still open inside.
#[test]
fn no_descriptor_of_the_agent_leaks() {
    vm_story(async {
        let vm = Vm::shared().await;
        // The shell's own listing adds the directory it reads.
        let script =
            "ls -l /proc/1/fd | sed 's/.* \\([0-9]*\\) -> .*/\\1/' | grep -v total | tr '\\n' ' '";
        let c = vm
            .container("iso-fds")
            .args(&["sleep", "100000"])
            .start()
            .await;
        assert_eq!(c.sh(script).await.ok().trim(), "0 1 2");
        let own = c.sh("ls /proc/self/fd | wc -l").await;
        assert_eq!(own.ok(), "4", "0, 1, 2 and the directory");
        c.kill_and_remove().await;
        for cwd in [
            "/proc/self/fd/7",
            "/proc/self/fd/9",
            "/proc/self/fd/12/../../..",
        ] {
            let id = "iso-cwd";
            match vm
                .container(id)
                .process(|p| p.Cwd = cwd.to_owned())
                .sh("pwd; ls /lib/keelson")
                .try_create()
                .await
            {
                Err(_) => {}
                Ok(c) => {
                    c.start().await;
                    let output = c.output().await;
                    assert_ne!(output.code, 0, "the guest's files are in reach: {output:?}");
                    c.remove().await;
                }
            }
        }
    });
}

/// CVE-2019-5736: a container that reaches the agent's binary can replace it. A sealed copy in memory may be seen, the binary may
/// not, and neither may be written to. Looked for in every process the container can see,
/// while another container waits between creation and start in the same process namespace.
#[test]
fn the_agents_binary_is_out_of_reach() {
    vm_story(async {
        let vm = Vm::boot(|g| g).await;
        vm.create_sandbox(|_| ()).await;
        // The first container's processes are the sandbox's.
        let c = vm
            .container("attacker")
            .capabilities(&[spec::DEFAULT_CAPABILITIES.as_slice(), &["CAP_SYS_PTRACE"]].concat())
            .args(&["sleep", "100000"])
            .sandbox_pids()
            .start()
            .await;
        let probe = vm.probe("probe").await;
        let digest = "sha256sum < /mnt/init";
        let before = probe.sh(digest).await;
        let waiting = vm
            .container("waiting")
            .args(&["sleep", "100000"])
            .sandbox_pids()
            .create()
            .await;
        let script = "for p in /proc/[0-9]*; do
                exe=$(readlink $p/exe) || continue
                case $exe in /bin/busybox) ;; *) (: >> $p/exe) 2>/dev/null && echo $exe is writable;; esac
                case $exe in /memfd:*) ;; /init|*keelson*) echo $exe is the agent;; esac
            done; echo looked";
        let execs = async {
            for _ in 0..10 {
                c.exec(&["true"]).run().await.ok();
            }
        };
        let attacker = c
            .exec(&[
                "sh",
                "-c",
                &format!("for i in $(seq 20); do {script}; done"),
            ])
            .process(|p| {
                let names = [spec::DEFAULT_CAPABILITIES.as_slice(), &["CAP_SYS_PTRACE"]].concat();
                p.Capabilities = Some(spec::capabilities(&names)).into();
            })
            .run();
        let (seen, ()) = tokio::join!(attacker, execs);
        assert!(
            seen.ok().lines().all(|line| line == "looked"),
            "{}",
            seen.stdout
        );
        waiting.start().await;
        assert_eq!(probe.sh(digest).await.ok(), before.ok());
    });
}

#[test]
fn every_process_has_a_session_of_its_own() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = vm
            .container("iso-session")
            .args(&["sleep", "100000"])
            .start()
            .await;
        // Fields 1 and 6 of /proc/PID/stat: the process and its session.
        assert_eq!(c.sh("cut -d ' ' -f 1,6 /proc/1/stat").await.ok(), "1 1");
        let exec = c
            .sh("set -- $(cut -d ' ' -f 6 /proc/$$/stat) && test $1 = $$ && echo leader")
            .await;
        assert_eq!(exec.ok(), "leader");
        c.kill_and_remove().await;
    });
}

#[test]
fn limits_reach_the_cgroup() {
    vm_story(async {
        let vm = Vm::shared().await;
        let output = vm
            .container("iso-limits")
            .linux(|l| {
                let resources = l.Resources.mut_or_insert_default();
                resources.Memory.mut_or_insert_default().Limit = 64 << 20;
                resources.Pids.mut_or_insert_default().Limit = 20;
                let cpu = resources.CPU.mut_or_insert_default();
                (cpu.Quota, cpu.Period) = (50_000, 100_000);
            })
            .sh("cd /sys/fs/cgroup; cat memory.max pids.max cpu.max; cat cgroup.procs | grep -c '^1$'")
            .run()
            .await;
        assert_eq!(output.ok(), "67108864\n20\n50000 100000\n1");
    });
}

#[test]
fn the_environment_is_that_of_the_spec() {
    vm_story(async {
        let vm = Vm::shared().await;
        let output = vm
            .container("iso-env")
            .process(|p| {
                p.Env = ["PATH=/bin", "A=1=2", "EMPTY=", "SPACE=a b "]
                    .map(str::to_owned)
                    .to_vec();
                p.Cwd = "/made/on/demand".to_owned();
            })
            .args(&["sh", "-c", "pwd; env | sort; hostname"])
            .run()
            .await;
        let lines: Vec<&str> = output.ok().lines().collect();
        assert_eq!(lines[0], "/made/on/demand");
        for wanted in ["A=1=2", "EMPTY=", "HOME=/root", "PATH=/bin"] {
            assert!(lines.contains(&wanted), "{wanted} is not in {lines:?}");
        }
        assert!(
            lines.iter().any(|l| l.starts_with("SPACE=a b")),
            "{lines:?}"
        );
        vm.sh("iso-env-clean", "rm -r /made").await.ok();
    });
}

/// An existing file under a bind mount's target keeps its content: the reference truncates it.
#[test]
fn a_bind_over_a_file_does_not_empty_it() {
    vm_story(async {
        let vm = Vm::shared().await;
        let bind = vm
            .container("iso-bind")
            .bind("/etc/hostname", "/proc/version")
            .sh("cat /etc/hostname")
            .run()
            .await;
        assert!(bind.ok().starts_with("Linux version"));
        assert_eq!(
            vm.sh("iso-bind-after", "cat /etc/hostname").await.ok(),
            "image"
        );
    });
}
