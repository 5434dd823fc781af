// SPDX-License-Identifier: Apache-2.0
//! A table of container specifications, each of which changes something, and what the probe reports inside: one line says what is
//! asked, the others what is expected of it ([`tests::facts`] has the notation).
//!
//! Every case is a container of its own, or a process of its own in one. A case that expects nothing else expects to be created and
//! to end with 0; `exit` and `refused` are facts like the others.

mod files;
mod limits;
mod mounts;
mod namespaces;
mod privileges;
mod seccomp;

use tests::container::{Builder, Exec};
use tests::facts::Facts;
use tests::rootfs::PROBE;
use tests::{Container, Output, Vm, spec};

type Shape = Box<dyn FnOnce(Builder) -> Builder + Send>;
type ExecShape = Box<dyn FnOnce(Exec) -> Exec + Send>;

/// A specification and what it leads to.
struct Case {
    name: String,
    shape: Shape,
    /// Present if another process in the container is meant and not its first.
    exec: Option<ExecShape>,
    expected: Vec<String>,
}

/// A container that differs from the ordinary one by `shape`. Its program is the probe unless `shape` says another.
fn case(
    name: impl Into<String>,
    shape: impl FnOnce(Builder) -> Builder + Send + 'static,
    expected: &[&str],
) -> Case {
    Case {
        name: name.into(),
        shape: Box::new(shape),
        exec: None,
        expected: expected.iter().map(|&e| e.to_owned()).collect(),
    }
}

/// A process that differs from the ordinary one by `exec`, in a container that differs by `shape`.
fn exec_case(
    name: impl Into<String>,
    shape: impl FnOnce(Builder) -> Builder + Send + 'static,
    exec: impl FnOnce(Exec) -> Exec + Send + 'static,
    expected: &[&str],
) -> Case {
    Case {
        exec: Some(Box::new(exec)),
        ..case(name, shape, expected)
    }
}

/// Tells all cases, whatever becomes of each; fails with the names of those that came out otherwise, what was expected and seen.
async fn tell(vm: &Vm, group: &str, cases: Vec<Case>) {
    let guest = guest(vm, group).await;
    let (count, mut wrong) = (cases.len(), Vec::new());
    for (number, case) in cases.into_iter().enumerate() {
        let id = format!("specs-{group}-{number}");
        let builder = (case.shape)(vm.container(&id).args(&[PROBE, "facts"]));
        let seen = match case.exec {
            None => of_container(builder).await,
            Some(exec) => of_exec(builder, exec).await,
        };
        let says_how_it_ends = |e: &String| e.starts_with("exit=") || e.starts_with("refused");
        let mut expected = case.expected;
        if !expected.iter().any(says_how_it_ends) {
            expected.insert(0, "exit=0".to_owned());
        }
        let mismatches = expected.iter().filter_map(|e| seen.mismatch(e, &guest));
        let mismatches: Vec<_> = mismatches.map(|m| format!("\n    expected {m}")).collect();
        if !mismatches.is_empty() {
            let told = ["exit", "refused", "stderr"].map(|n| (n, seen.get(n).unwrap_or("")));
            wrong.push(format!(
                "\n  {}:{} {told:?}",
                case.name,
                mismatches.concat()
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {count} specifications of {group} came out otherwise:{}",
        wrong.len(),
        wrong.concat()
    );
}

/// What the guest's PID 1 has.
async fn guest(vm: &Vm, group: &str) -> Facts {
    let probe = vm.probe(&format!("specs-{group}-guest")).await;
    let look = probe.exec(&[PROBE, "process", "1"]);
    let all = spec::capabilities(&spec::ALL_CAPABILITIES);
    let facts = look
        .process(|p| p.Capabilities = Some(all).into())
        .run()
        .await
        .facts();
    probe.kill_and_remove().await;
    facts
}

async fn of_container(builder: Builder) -> Facts {
    match builder.try_create().await {
        Ok(container) => {
            container.start().await;
            let seen = told(&container.output().await);
            container.remove().await;
            seen
        }
        Err(refusal) => refused(&refusal),
    }
}

async fn of_exec(builder: Builder, exec: ExecShape) -> Facts {
    let container: Container = match builder.args(&["sleep", "100000"]).try_create().await {
        Ok(container) => container,
        Err(refusal) => return refused(&refusal),
    };
    container.start().await;
    let seen = match exec(container.exec(&[PROBE, "facts"])).try_start().await {
        Ok(process) => told(&process.output().await),
        Err(refusal) => refused(&refusal),
    };
    container.kill_and_remove().await;
    seen
}

fn told(output: &Output) -> Facts {
    let mut facts = Facts::parse(&output.stdout);
    facts.add("exit", output.code);
    facts.add("stderr", output.stderr.trim_end());
    facts
}

fn refused(refusal: &tests::Refusal) -> Facts {
    let mut facts = Facts::default();
    facts.add("refused", refusal.to_string().replace([':', '\''], " "));
    facts
}
