// SPDX-License-Identifier: Apache-2.0
//! Hooks of all kinds: when and where they run, what they are told, and what their failures do.

use protocols::agent::CreateContainerRequest;
use protocols::oci;
use serde_json::Value;
use tests::{Code, Container, Vm, artifacts, expect_refusal, vm_story};

/// The shell of the guest itself, for hooks that run there.
fn guest_shell() -> String {
    format!("{}/bin/busybox", artifacts::ROOTFS)
}

/// A hook that runs a script in the guest. `path` is all the search path that it gets.
fn hook(script: &str, timeout: i64) -> oci::Hook {
    let mut hook = oci::Hook::new();
    hook.Path = guest_shell();
    hook.Args = ["sh", "-c", script].map(str::to_owned).to_vec();
    hook.Env = vec![format!("PATH={}/bin", artifacts::ROOTFS)];
    hook.Timeout = timeout;
    hook
}

/// The same inside the container.
fn inner_hook(script: &str) -> oci::Hook {
    let mut hook = hook(script, 0);
    hook.Path = "/bin/busybox".to_owned();
    hook.Env = vec!["PATH=/bin".to_owned()];
    hook
}

fn hooks(request: &mut CreateContainerRequest) -> &mut oci::Hooks {
    request
        .OCI
        .mut_or_insert_default()
        .Hooks
        .mut_or_insert_default()
}

/// What a hook was told, from the file that it copied it to.
async fn told(probe: &Container, path: &str) -> Value {
    let text = probe.sh(&format!("cat /mnt{path}")).await;
    serde_json::from_str(text.ok()).unwrap_or_else(|e| panic!("{path}: {e}: {text:?}"))
}

#[test]
fn each_kind_runs_at_its_point_and_is_told_the_state() {
    vm_story(async {
        let vm = Vm::shared().await;
        let probe = vm.probe("hooks-probe").await;
        probe.sh("mkdir -p /mnt/run/hooks-each").await.ok();
        // Each leaves its state, the mount namespace it is in, and its place in the order.
        let leave = |kind: &str| {
            format!(
                "cd /run/hooks-each; cat > {kind}.json; readlink /proc/self/ns/mnt > {kind}.ns; echo {kind} >> order"
            )
        };
        let creation = " && test -e /run/kata-containers/hooks-each/config.json";
        let c = vm
            .container("hooks-each")
            .bind("/run/hooks-each", "/run/hooks-each")
            .spec(|s| {
                s.Annotations
                    .insert("key".to_owned(), "a \"quoted\"\nvalue".to_owned());
            })
            .request(|r| {
                let hooks = hooks(r);
                hooks.Prestart = vec![hook(&(leave("prestart") + creation), 0)];
                hooks.CreateRuntime = vec![hook(&(leave("createRuntime") + creation), 0)];
                let see_both =
                    "; test -d /opt/image && grep -q /hooks-each/rootfs/proc /proc/self/mounts";
                let create =
                    leave("createContainer") + "; cd /run/kata-containers/hooks-each" + see_both;
                hooks.CreateContainer = vec![hook(&create, 0)];
                let start = leave("startContainer") + "; ! test -d /opt/image";
                hooks.StartContainer = vec![inner_hook(&start)];
                hooks.Poststart = vec![hook(&leave("poststart"), 0)];
                let stop = leave("poststop")
                    + "; test -d /run/kata-containers/hooks-each && echo bundle >> order";
                hooks.Poststop = vec![hook(&stop, 0)];
            })
            .sh("echo program >> /run/hooks-each/order; sleep 100000")
            .create()
            .await;
        let order = async || {
            let order = probe.sh("cat /mnt/run/hooks-each/order").await;
            order.ok().to_owned()
        };
        assert_eq!(order().await, "prestart\ncreateRuntime\ncreateContainer");
        c.start().await;
        let pid = told(&probe, "/run/hooks-each/poststart.json").await["pid"].clone();
        let command = probe
            .sh(&format!("tr '\\0' ' ' < /proc/{pid}/cmdline"))
            .await;
        assert!(command.ok().contains("sleep 100000"), "{command:?}");
        let inside = c.sh("readlink /proc/self/ns/mnt").await.ok().to_owned();
        c.kill_and_remove().await;
        let all = order().await;
        let (first, rest) = all.split_once("startContainer\n").expect("it has run");
        assert_eq!(first, "prestart\ncreateRuntime\ncreateContainer\n");
        // The program and poststart go on side by side.
        assert!(
            rest.contains("program") && rest.contains("poststart"),
            "{all}"
        );
        assert!(rest.ends_with("poststop\nbundle"), "{all}");

        for (kind, status, in_guest) in [
            ("prestart", "creating", true),
            ("createRuntime", "creating", true),
            ("createContainer", "creating", false),
            ("startContainer", "created", false),
            ("poststart", "running", true),
            ("poststop", "stopped", true),
        ] {
            let state = told(&probe, &format!("/run/hooks-each/{kind}.json")).await;
            assert_eq!(state["id"], "hooks-each", "{kind}");
            assert_eq!(state["status"], status, "{kind}");
            assert_eq!(state["bundle"], "/run/kata-containers/hooks-each", "{kind}");
            assert_eq!(state["annotations"]["key"], "a \"quoted\"\nvalue", "{kind}");
            assert!(state["ociVersion"].is_string(), "{kind}");
            let expected = match kind {
                "poststop" => None,
                // As the container sees it.
                "createContainer" | "startContainer" => Some(1),
                _ => pid.as_i64(),
            };
            assert_eq!(state["pid"].as_i64(), expected, "{kind}");
            let namespace = probe
                .sh(&format!("cat /mnt/run/hooks-each/{kind}.ns"))
                .await;
            assert_eq!(namespace.ok() != inside, in_guest, "{kind}");
        }
        probe.kill_and_remove().await;
    });
}

#[test]
fn the_configuration_in_the_bundle_is_the_container_s() {
    vm_story(async {
        let vm = Vm::shared().await;
        let probe = vm.probe("hooks-config-probe").await;
        let script = "cp /run/kata-containers/hooks-config/config.json /run/hooks-config.json";
        let output = vm
            .container("hooks-config")
            .env("OF=this container")
            .request(|r| hooks(r).Prestart = vec![hook(script, 0)])
            .sh("true")
            .run()
            .await;
        output.ok();
        let config = told(&probe, "/run/hooks-config.json").await;
        let env = config["process"]["env"]
            .as_array()
            .expect("there is an environment");
        assert!(env.iter().any(|e| e == "OF=this container"), "{config}");
        assert_eq!(
            config["root"]["path"],
            "/run/kata-containers/hooks-config/rootfs"
        );
        assert!(config["linux"]["namespaces"].is_array(), "{config}");
        // Without hooks nobody pays for the file.
        let c = vm
            .container("hooks-none")
            .args(&["sleep", "1000"])
            .create()
            .await;
        let files = probe.sh("ls /mnt/run/kata-containers/hooks-none").await;
        assert_eq!(files.ok(), "rootfs");
        c.kill_and_remove().await;
        probe.kill_and_remove().await;
    });
}

#[test]
fn a_hook_of_the_creation_that_fails_undoes_the_container() {
    vm_story(async {
        let vm = Vm::shared().await;
        let probe = vm.probe("hooks-fail-probe").await;
        for kind in ["prestart", "createRuntime", "createContainer"] {
            let failing = vec![hook("echo out of luck; exit 7", 0)];
            let stop = vec![hook(&format!("cat > /run/hooks-fail-{kind}.json"), 0)];
            let refused = vm
                .container("hooks-fail")
                .sh("true")
                .request(|r| {
                    let hooks = hooks(r);
                    hooks.Poststop = stop;
                    match kind {
                        "prestart" => hooks.Prestart = failing,
                        "createRuntime" => hooks.CreateRuntime = failing,
                        _ => hooks.CreateContainer = failing,
                    }
                })
                .try_create()
                .await
                .map(drop);
            let refusal = refused.expect_err(kind);
            assert_eq!(refusal.code, Some(Code::INTERNAL), "{refusal}");
            for part in [&guest_shell(), "status 7", "out of luck"] {
                assert!(refusal.text.contains(part), "{kind}: {refusal}");
            }
            let state = told(&probe, &format!("/run/hooks-fail-{kind}.json")).await;
            assert_eq!(state["status"], "stopped");
            let left = probe
                .sh("ls -d /mnt/run/kata-containers/hooks-fail /mnt/sys/fs/cgroup/stories/hooks-fail; \
                     grep -c hooks-fail/ /proc/1/mounts")
                .await;
            assert_eq!(left.stdout.trim_end(), "0", "{kind}: {left:?}");
        }
        vm.sh("hooks-fail", "echo free").await.ok();
        probe.kill_and_remove().await;
    });
}

#[test]
fn a_start_hook_that_fails_fails_the_start() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = vm
            .container("hooks-start")
            .request(|r| hooks(r).StartContainer = vec![inner_hook("echo not today; exit 9")])
            .sh("echo must not run")
            .create()
            .await;
        expect_refusal(c.try_start().await, Code::INTERNAL, "not today");
        let output = c.output().await;
        assert_ne!(output.code, 0);
        assert_eq!(output.stdout, "");
        expect_refusal(
            c.try_start().await,
            Code::FAILED_PRECONDITION,
            "hooks-start",
        );
        c.remove().await;
    });
}

#[test]
fn hooks_after_the_fact_may_fail() {
    vm_story(async {
        let vm = Vm::shared().await;
        let output = vm
            .container("hooks-late")
            .request(|r| {
                let hooks = hooks(r);
                hooks.Poststart = vec![hook("exit 1", 0)];
                hooks.Poststop = vec![hook("kill -9 $$", 0)];
            })
            .sh("echo fine")
            .run()
            .await;
        assert_eq!(output.ok(), "fine");
    });
}

/// More than a pipe holds, for a hook that closes its end of it: nobody may die of that.
#[test]
fn a_hook_need_not_care_for_its_state() {
    vm_story(async {
        let vm = Vm::shared().await;
        let careless = || vec![hook("exec 0<&-; sleep 0.2", 0)];
        let output = vm
            .container("hooks-careless")
            .spec(|s| {
                s.Annotations.insert("long".to_owned(), "x".repeat(300_000));
            })
            .request(|r| {
                let hooks = hooks(r);
                hooks.CreateRuntime = careless();
                hooks.CreateContainer = careless();
                hooks.StartContainer = vec![inner_hook("exec 0<&-; sleep 0.2")];
            })
            .sh("sh -c 'kill -PIPE $$; echo still here'; echo $?")
            .run()
            .await;
        // The program has the usual disposition of the signal.
        assert_eq!(output.ok(), "141");
    });
}

#[test]
fn a_hook_has_its_time() {
    vm_story(async {
        let vm = Vm::shared().await;
        let refused = vm
            .container("hooks-time")
            .request(|r| hooks(r).CreateRuntime = vec![hook("sleep 4321 & sleep 4321", 1)])
            .sh("true")
            .try_create()
            .await
            .map(drop);
        expect_refusal(refused, Code::INTERNAL, "killed after 1 s");
        let probe = vm.probe("hooks-time-probe").await;
        let left = probe.sh("ps -o args | grep -c '[s]leep 4321'").await;
        assert_eq!(left.stdout.trim_end(), "0");
        probe.kill_and_remove().await;
    });
}

/// Also: RemoveContainer during the creation gives it up instead of waiting for it, or of missing it.
#[test]
fn a_hung_hook_delays_nobody_else_and_can_be_given_up() {
    vm_story(async {
        let vm = Vm::shared().await;
        for inside in [false, true] {
            let creation = vm
                .container("hooks-hung")
                .request(|r| {
                    let hung = vec![hook("sleep 100000", 3600)];
                    match inside {
                        true => hooks(r).CreateContainer = hung,
                        false => hooks(r).Prestart = hung,
                    }
                })
                .sh("true");
            let creation = tokio::spawn(async move { creation.try_create().await.map(drop) });
            assert_eq!(vm.sh("hooks-other", "echo alive").await.ok(), "alive");
            assert!(!creation.is_finished());
            let hung = Container::known(&vm, "hooks-hung");
            // Not there yet, or no longer: either is over at once.
            while hung.try_remove().await.is_err() {}
            let created = creation.await.expect("it is answered");
            expect_refusal(created, Code::FAILED_PRECONDITION, "hooks-hung");
            assert_eq!(vm.sh("hooks-hung", "echo again").await.ok(), "again");
        }
    });
}

/// The reference forgets the guest's hooks as soon as a container has any of its own.
#[test]
fn bug_the_guest_s_hooks_run_beside_the_container_s_own() {
    vm_story(async {
        let vm = Vm::boot(|g| g).await;
        let probe = vm.probe("probe").await;
        let sh = format!("#!{}/bin/sh", artifacts::ROOTFS);
        let script = format!(
            "mkdir -p /mnt/run/hooks.d/prestart /mnt/run/hooks.d/poststop; cd /mnt/run/hooks.d
             printf '{sh}\\necho $(basename $0) $1 >> /run/said\\nexit 1\\n' > prestart/20-second
             sed 's/exit 1//' prestart/20-second > prestart/10-first; cp prestart/20-second poststop/last
             cp prestart/10-first prestart/not-executable; ln -s 10-first prestart/30-link
             chmod +x prestart/[12]* poststop/last"
        );
        probe
            .sh(&script.replace("$(basename $0)", "${0##*/}"))
            .await
            .ok();
        vm.create_sandbox(|r| r.guest_hook_path = "/run/hooks.d".to_owned())
            .await;
        let own = "echo own >> /run/said";
        let output = vm
            .container("c1")
            .request(|r| hooks(r).Prestart = vec![hook(own, 0)])
            .sh("echo ran")
            .run()
            .await;
        assert_eq!(output.ok(), "ran");
        let said = probe.sh("cat /mnt/run/said").await;
        assert_eq!(
            said.ok(),
            "own\n10-first prestart\n20-second prestart\nlast poststop"
        );
        probe.sh("rm /mnt/run/said").await.ok();
        vm.sh("c2", "true").await.ok();
        let said = probe.sh("wc -l < /mnt/run/said").await;
        assert_eq!(said.ok(), "3");
        probe.kill_and_remove().await;
    });
}
