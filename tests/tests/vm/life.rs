// SPDX-License-Identifier: Apache-2.0
//! Containers and their processes: create, start, exec, wait, remove.

use tests::container::Stream;
use tests::{Code, Vm, expect_refusal, vm_story};

#[test]
fn a_container_runs_to_its_end() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = vm
            .container("life-1")
            .sh("echo out; echo err >&2; exit 42")
            .create()
            .await;
        c.start().await;
        let output = c.output().await;
        assert_eq!(
            (output.code, &*output.stdout, &*output.stderr),
            (42, "out\n", "err\n")
        );
        c.remove().await;
        expect_refusal(c.try_wait().await, Code::INVALID_ARGUMENT, "life-1");
    });
}

#[test]
fn an_id_can_be_used_again() {
    vm_story(async {
        let vm = Vm::shared().await;
        for round in 0..5 {
            assert_eq!(
                vm.sh("life-again", &format!("echo {round}")).await.ok(),
                round.to_string()
            );
        }
    });
}

#[test]
fn every_exit_code_arrives() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = vm
            .container("life-codes")
            .args(&["sleep", "100000"])
            .start()
            .await;
        for base in (0..256).step_by(8) {
            let mut processes = Vec::new();
            for code in base..base + 8 {
                processes.push((
                    code,
                    c.exec(&["sh", "-c", &format!("exit {code}")]).start().await,
                ));
            }
            for (code, process) in processes {
                assert_eq!(process.wait().await, code);
            }
        }
        c.kill_and_remove().await;
        for code in [0, 1, 127, 255] {
            let output = vm.sh("life-code", &format!("exit {code}")).await;
            assert_eq!(output.code, code);
        }
    });
}

#[test]
fn death_by_signal_is_128_and_the_number() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = vm
            .container("life-killed")
            .args(&["sleep", "100000"])
            .start()
            .await;
        // Not SIGQUIT, which this shell ignores.
        for signal in [1, 2, 6, 9, 11, 14, 15] {
            let output = c.sh(&format!("kill -{signal} $$; sleep 10")).await;
            assert_eq!(output.code, 128 + signal, "signal {signal}");
        }
        c.kill_and_remove().await;
    });
}

#[test]
fn an_exec_has_its_own_environment_directory_and_user() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = vm
            .container("life-exec")
            .args(&["sleep", "100000"])
            .env("OF=container")
            .start()
            .await;
        let output = c
            .exec(&[
                "sh",
                "-c",
                "pwd; id -u; id -g; id -G; echo $WORD $OF; echo $HOME",
            ])
            .process(|p| {
                p.Cwd = "/tmp".to_owned();
                p.Env.push("WORD=an exec=of its own".to_owned());
                let user = p.User.mut_or_insert_default();
                user.UID = 1000;
                user.GID = 1000;
                user.AdditionalGids = vec![7, 8];
            })
            .run()
            .await;
        assert_eq!(
            output.ok(),
            "/tmp\n1000\n1000\n1000 7 8\nan exec=of its own\n/home"
        );
        c.kill_and_remove().await;
    });
}

#[test]
fn a_missing_program_is_named() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = vm
            .container("life-missing")
            .args(&["sleep", "100000"])
            .start()
            .await;
        for program in ["no-such-program", "/no/such/program", "./no-such-program"] {
            let refusal = c
                .exec(&[program])
                .try_start()
                .await
                .err()
                .expect("it is refused");
            assert!(refusal.text.contains(program), "{refusal}");
        }
        // Neither a failed exec nor its id stays behind.
        let again = c.exec(&["no-such-program"]).id("same").try_start().await;
        assert!(again.is_err());
        assert_eq!(
            c.exec(&["echo", "fine"]).id("same").run().await.ok(),
            "fine"
        );
        c.kill_and_remove().await;
    });
}

#[test]
fn execs_run_side_by_side() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = vm
            .container("life-many")
            .args(&["sleep", "100000"])
            .start()
            .await;
        let mut running = Vec::new();
        for number in 0..20 {
            running.push(
                c.exec(&["sh", "-c", &format!("read line; echo $line {number}")])
                    .start()
                    .await,
            );
        }
        for (number, process) in running.iter().enumerate().rev() {
            process.write(b"line\n").await;
            assert_eq!(process.output().await.ok(), format!("line {number}"));
        }
        c.kill_and_remove().await;
    });
}

#[test]
fn containers_run_side_by_side() {
    vm_story(async {
        let vm = Vm::shared().await;
        let tasks: Vec<_> = (0..6)
            .map(|number| {
                let agent = vm.clone();
                tokio::spawn(async move {
                    let output = agent
                        .sh(&format!("life-side-{number}"), &format!("echo {number}"))
                        .await;
                    assert_eq!(output.ok(), number.to_string());
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("each runs to its end");
        }
    });
}

#[test]
fn every_waiter_gets_the_exit_code() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = vm
            .container("life-waiters")
            .sh("read line; exit 33")
            .start()
            .await;
        let other = vm.another_connection().await;
        let waiters: Vec<_> = [c.through(&vm), c.through(&vm), c.through(&other)]
            .into_iter()
            .map(|process| tokio::spawn(async move { process.wait().await }))
            .collect();
        // The waiters are there before the process ends: this read is answered after they were sent.
        vm.expect_alive().await;
        c.write(b"go\n").await;
        for waiter in waiters {
            assert_eq!(waiter.await.expect("each waiter is answered"), 33);
        }
        expect_refusal(c.try_wait().await, Code::NOT_FOUND, "");
        c.remove().await;
    });
}

#[test]
fn output_can_be_read_after_the_end() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = vm
            .container("life-late")
            .sh("echo one; echo two >&2")
            .start()
            .await;
        let code = vm
            .container("life-late-other")
            .sh("sleep 0.3")
            .run()
            .await
            .code;
        assert_eq!(code, 0);
        assert_eq!(c.read_to_end(Stream::Stdout).await, b"one\n");
        assert_eq!(c.read_to_end(Stream::Stderr).await, b"two\n");
        assert_eq!(c.wait().await, 0);
        c.remove().await;
    });
}

/// A descendant that keeps the pipe must not keep the reader once the process itself has ended.
#[test]
fn a_daemon_does_not_hold_the_output_open_for_ever() {
    vm_story(async {
        let vm = Vm::shared().await;
        let c = vm
            .container("life-daemon")
            .args(&["sleep", "100000"])
            .start()
            .await;
        let process = c
            .exec(&["sh", "-c", "echo started; sleep 100000 & exit 4"])
            .start()
            .await;
        let output = process.output().await;
        assert_eq!((output.code, output.stdout.as_str()), (4, "started\n"));
        c.kill_and_remove().await;
    });
}

#[test]
fn a_disconnect_during_creation_leaves_all_or_nothing() {
    vm_story(async {
        let vm = Vm::shared().await;
        for round in 0..10 {
            let id = format!("life-cut-{round}");
            let request = vm.container(&id).args(&["sleep", "100000"]).into_request();
            let bytes = protobuf::Message::write_to_bytes(&request).expect("it encodes");
            {
                let mut wire = vm.wire().await;
                wire.send_request("grpc.AgentService", "CreateContainer", &bytes)
                    .await;
                tokio::time::sleep(std::time::Duration::from_millis(round * 7)).await;
            }
            if let Err(refusal) = vm.rpc().create_container(&request).await {
                assert_eq!(refusal.code, Some(Code::ALREADY_EXISTS), "{refusal}");
            }
            let c = tests::Container::known(&vm, &id);
            while c.try_start().await.is_err() {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            assert_eq!(c.sh("echo whole").await.ok(), "whole");
            c.kill_and_remove().await;
        }
    });
}
