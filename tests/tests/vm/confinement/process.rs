// SPDX-License-Identifier: Apache-2.0
//! Processes: the agent's and those on their way, descriptors, capabilities, orders.

use tests::rootfs::PROBE;
use tests::vm::PORT;
use tests::{Output, Vm, spec, vm_story};

use super::{default_and, probe, script, start};

/// Overwriting the agent's binary (CVE-2019-5736): by the links in `/proc` that lead to it, also from a container whose program is such
/// a link, which makes the agent execute itself inside.
#[test]
fn overwriting_the_agents_binary() {
    vm_story(async {
        let vm = Vm::shared().await;
        let guest = vm.probe("conf-exe-guest").await;
        let digest = async || guest.sh("sha256sum < /mnt/init").await.ok().to_owned();
        let before = digest().await;
        let all = default_and(&["CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"]);
        let attacker = start(vm.container("conf-exe").capabilities(&all)).await;
        for path in ["/proc/1/exe", "/proc/self/exe"] {
            for attempt in ["open", "reopen"] {
                let facts = probe(&attacker, &[attempt, path, "w"]).await;
                facts.expect_all(&["errno=ETXTBSY"]);
                let facts = probe(&attacker, &[attempt, path, "r"]).await;
                facts.expect_all(&["result=opened"]);
            }
        }
        let watch = "for i in $(seq 200); do for p in /proc/[0-9]*; do
                case $(readlink $p/exe) in /bin/*) ;; '') ;; *) (: >> $p/exe) 2>/dev/null && echo $p/exe; echo seen >&2;; esac
            done; done";
        let execs = async {
            for _ in 0..20 {
                let own = attacker.exec(&["/proc/self/exe", "--version"]);
                let _ = own.run().await;
            }
        };
        let (watched, ()) = tokio::join!(script(&attacker, watch), execs);
        assert_eq!(watched.ok(), "", "something could be written to");
        let itself = vm.container("conf-exe-self").args(&["/proc/self/exe"]);
        if let Ok(container) = itself.try_create().await {
            container.start().await;
            container.kill_and_remove().await;
        }
        vm.expect_alive().await;
        assert_eq!(digest().await, before);
        attacker.kill_and_remove().await;
        guest.kill_and_remove().await;
    });
}

/// A foothold outside by a working directory or a descriptor that was left open (CVE-2024-21626, CVE-2016-9962).
#[test]
fn staying_outside_by_directory_or_descriptor() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = start(vm.container("conf-cwd")).await;
        let init = probe(&c, &["process", "1"]).await;
        init.expect_all(&["fds=0,1,2"]);
        let exec = probe(&c, &["facts"]).await;
        exec.expect_all(&["fds=0,1,2", "cwd=/"]);
        script(
            &c,
            "for n in $(seq 3 12); do ln -s /proc/self/fd/$n /tmp/conf-cwd-$n; done",
        )
        .await
        .ok();
        for number in 3..=12 {
            for cwd in [
                format!("/proc/self/fd/{number}"),
                format!("/proc/self/fd/{number}/.."),
                format!("/proc/1/fd/{number}"),
                format!("/tmp/conf-cwd-{number}"),
            ] {
                let builder = vm.container("conf-cwd-init").args(&[PROBE, "facts"]);
                if let Ok(c) = builder
                    .process(|p| p.Cwd.clone_from(&cwd))
                    .try_create()
                    .await
                {
                    c.start().await;
                    inside(&cwd, &c.output().await);
                    c.remove().await;
                }
                let exec = c.exec(&[PROBE, "facts"]);
                if let Ok(process) = exec.process(|p| p.Cwd.clone_from(&cwd)).try_start().await {
                    inside(&cwd, &process.output().await);
                }
            }
        }
        let there = c
            .exec(&[PROBE, "facts"])
            .process(|p| p.Cwd = "/tmp".to_owned());
        there.run().await.facts().expect_all(&["cwd=/tmp"]);
        script(&c, "rm /tmp/conf-cwd-*").await.ok();
        c.kill_and_remove().await;
    });
}

/// A process that was let run in such a directory is in the container's tree nevertheless.
fn inside(cwd: &str, output: &Output) {
    if output.code == 0 {
        let facts = output.facts();
        let seen = facts.expect("cwd");
        assert!(
            seen.starts_with('/') && !seen.contains("unreachable"),
            "{cwd}: {seen}"
        );
        facts.expect_all(&["fds=0,1,2"]);
    }
}

/// Descriptors and memory of a process that is on its way into the container (CVE-2016-9962, CVE-2019-16884's cousins): while one waits
/// to be started, its neighbours in the process namespace reach neither what it has open nor the file system it comes from.
#[test]
fn reaching_into_a_process_that_is_being_started() {
    vm_story(async {
        let vm = Vm::boot(|g| g).await;
        vm.create_sandbox(|_| ()).await;
        let attacker = start(vm.container("attacker").sandbox_pids()).await;
        let waiting = vm.container("waiting").args(&["sleep", "100000"]);
        let waiting = waiting.sandbox_pids().create().await;
        // Processes whose program is none of the container's; there is one.
        let reach = "for p in /proc/[0-9]*; do
                case $(tr '\\0' ' ' < $p/cmdline) in sleep*|sh*|'') continue;; esac
                echo other
                ls $p/root/ $p/cwd/ 2>/dev/null | sed \"s|^|$p shows |\"
                for fd in $p/fd/* $p/exe $p/ns/*; do readlink $fd; (: < $fd) 2>/dev/null && echo $fd opens; done
                probe syscall ptrace 0x4206 ${p#/proc/} 0 0 | grep -v errno=EPERM
                cat $p/environ $p/maps $p/exe 2>/dev/null | head -c 1 | sed \"s|^|$p shows |\"
            done";
        assert_eq!(script(&attacker, reach).await.ok(), "other");
        // The numbers are no secret; what is behind them is, unless one may trace.
        let numbers = script(
            &attacker,
            "for p in /proc/[0-9]*; do test $p = /proc/1 || ls $p/fd; done | wc -l",
        )
        .await;
        assert_ne!(numbers.ok(), "0");
        waiting.start().await;
        let own = script(&attacker, "ls /proc/1/fd | wc -l").await;
        assert_eq!(own.ok(), "3");
        let traced = probe(&attacker, &["syscall", "ptrace", "0x4206", "1", "0", "0"]).await;
        traced.expect_all(&["result=0"]);
        vm.expect_power_off().await;
    });
}

/// Regaining capabilities (kata-containers#13615): the container's first process goes to a mount namespace of its own, in which proc
/// says that there are hardly any capabilities to be dropped; then the host has another process started.
#[test]
fn regaining_capabilities_by_a_forged_mount_namespace() {
    vm_story(async {
        let vm = Vm::shared().await;
        let forge = "mkdir -p /tmp/fake/sys/kernel /tmp/fake/self/attr /tmp/fake/self/fd /tmp/fake/thread-self && echo 0 > /tmp/fake/sys/kernel/cap_last_cap
            printf 'CapBnd:\\t0000000000000000\\n' > /tmp/fake/self/status
            mount --bind /tmp/fake /proc && echo forged && exec unshare -m sh -c 'mount --bind /tmp/fake /mnt; echo moved; exec sleep 100000'";
        let c = vm
            .container("conf-caps")
            .capabilities(&["CAP_SYS_ADMIN", "CAP_KILL"]);
        let c = c
            .mount("/tmp", "tmpfs", "tmpfs", &[])
            .sh(forge)
            .start()
            .await;
        c.expect("moved").await;
        let exec = c.exec(&[PROBE, "facts"]);
        let exec =
            exec.process(|p| p.Capabilities = Some(spec::capabilities(&["CAP_KILL"])).into());
        let facts = exec.run().await.facts();
        facts.expect_all(&[
            "cap:bounding=CAP_KILL",
            "cap:permitted=CAP_KILL",
            "cap:effective=CAP_KILL",
            "cap:inheritable=",
            "cap:ambient=",
            "no_new_privs=true",
        ]);
        // It is where the container began, and not where its first process went; proc is forged there too.
        let look = c.exec(&["sh", "-c", "cat /proc/sys/kernel/cap_last_cap; ls /mnt"]);
        assert_eq!(look.run().await.ok(), "0");
        c.kill_and_remove().await;
    });
}

/// Ending the agent or what other containers run.
#[test]
fn killing_the_agent() {
    vm_story(async {
        let vm = Vm::boot(|g| g).await;
        vm.create_sandbox(|_| ()).await;
        let other = start(vm.container("other")).await;
        // Its first process is theirs, and the signals' first victim.
        let _sandbox = start(vm.container("first").sandbox_pids()).await;
        let kill = "for n in $(seq 400); do test $n = $$ || kill -9 $n 2>/dev/null; done; kill -9 -1 2>/dev/null; echo tried";
        for id in ["shares", "own"] {
            let c = vm.container(id).sh(kill);
            let c = if id == "shares" { c.sandbox_pids() } else { c };
            let output = c.run().await;
            assert!(output.ok().contains("tried"), "{output:?}");
        }
        vm.expect_alive().await;
        assert_eq!(other.sh("echo alive").await.ok(), "alive");
        // With the guest's processes in view, to which it needs the host's word: no signal ends their first.
        let guest = vm.probe("guest").await;
        for signal in 1..=31 {
            let sent = probe(&guest, &["syscall", "kill", "1", &signal.to_string()]).await;
            sent.expect_all(&["result=0"]);
        }
        vm.expect_alive().await;
        assert_eq!(vm.sh("after", "echo alive").await.ok(), "alive");
        vm.expect_power_off().await;
    });
}

/// Giving orders to the agent: its port is the host's, also where the kernel connects a machine to itself.
#[test]
fn giving_orders_to_the_agent() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = start(
            vm.container("conf-vsock")
                .capabilities(&spec::ALL_CAPABILITIES),
        )
        .await;
        let check = check_request();
        for cid in ["1", "3", "4294967295"] {
            let seen = probe(&c, &["vsock", cid, &PORT.to_string(), &check]).await;
            let answered = seen.get("answered").unwrap_or("0");
            assert_eq!(
                answered, "0",
                "the agent obeys a container by CID {cid}: {seen:?}"
            );
        }
        // To the host it may talk; nobody listens there.
        let host = probe(&c, &["vsock", "2", "2048"]).await;
        assert!(
            host.get("errno").is_some_and(|e| e != "EAFNOSUPPORT"),
            "{host:?}"
        );
        vm.expect_alive().await;
        c.kill_and_remove().await;
    });
}

/// A frame that asks for Health.Check, in hexadecimal: length, stream 1, a request, no flags; service and method.
fn check_request() -> String {
    let (service, method) = ("grpc.Health", "Check");
    let mut body = vec![0x0a, service.len() as u8];
    body.extend(service.bytes());
    body.extend([0x12, method.len() as u8]);
    body.extend(method.bytes());
    let mut frame = (body.len() as u32).to_be_bytes().to_vec();
    frame.extend([0, 0, 0, 1, 1, 0]);
    frame.extend(body);
    frame.iter().map(|byte| format!("{byte:02x}")).collect()
}
