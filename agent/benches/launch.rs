// SPDX-License-Identifier: Apache-2.0
//! What the ways of starting a container's process cost, one beside the other
//! (the figures of `docs/adr/0003-launcher.md`):
//!
//! - `fork`: the agent itself forks, the child executes;
//! - `re-exec`: the agent spawns a sealed copy of itself for each process,
//!   which then executes the program;
//! - `launcher`: the agent's own way, with plan, report and all.
//!
//! `cargo bench -p agent --bench launch`; prints the median and the quartiles
//! of each, rounds interleaved. It asserts nothing.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use agent::cgroup::Join;
use agent::children::Children;
use agent::container::Engine;
use agent::container::plan::{ChildPlan, ProcessPlan};
use agent::container::spawn::{Request, spawn};
use agent::launch::{LAUNCHER_WORD, sealed_copy, server};
use init::reaper::Reaper;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, execv, fork};

const ROUNDS: usize = 300;
const PROGRAM: &str = "/bin/true";
const PASS_ON: &str = "pass-on";

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some(LAUNCHER_WORD) => {
            let socket = std::io::stdin().as_fd().try_clone_to_owned();
            server::serve(socket.expect("the launcher's socket is its standard input"))
        }
        Some(PASS_ON) => execute(),
        _ => measure(),
    }
}

fn execute() -> ! {
    let program = CString::new(PROGRAM).expect("no NUL in it");
    let error = execv(&program, std::slice::from_ref(&program));
    panic!("{PROGRAM} cannot be executed: {error:?}");
}

fn measure() {
    // As much memory as the agent has at rest, so that a fork copies its page tables.
    let ballast = vec![1u8; 2 << 20];
    let (mut forks, mut copies, mut launches) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        forks.push(timed(by_fork));
    }
    let image = sealed_copy().expect("a sealed copy");
    for _ in 0..ROUNDS {
        copies.push(timed(|| by_copy(&image)));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let children = Children::default();
        tokio::spawn(children.clone().serve(Reaper::new().expect("a reaper")));
        let engine = Engine::new(children, 0);
        for _ in 0..ROUNDS {
            let start = Instant::now();
            by_launcher(&engine).await;
            launches.push(start.elapsed());
        }
    });
    drop(ballast);
    for (name, times) in [("fork", forks), ("re-exec", copies), ("launcher", launches)] {
        report(name, times);
    }
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn report(name: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |part: usize| times[times.len() * part / 4].as_micros();
    println!(
        "{name:9} median {:5} us   quartiles {:5} .. {:5} us",
        at(2),
        at(1),
        at(3)
    );
}

#[allow(unsafe_code)]
fn by_fork() {
    // SAFETY: there is one thread yet, and the child executes at once.
    match unsafe { fork() }.expect("fork") {
        ForkResult::Child => execute(),
        ForkResult::Parent { child } => drop(waitpid(child, None).expect("the child's exit")),
    }
}

fn by_copy(image: &std::os::fd::OwnedFd) {
    let status = Command::new(format!("/proc/self/fd/{}", image.as_raw_fd()))
        .arg(PASS_ON)
        .stdin(Stdio::null())
        .status()
        .expect("the copy's exit");
    assert!(status.success());
}

async fn by_launcher(engine: &Engine) {
    let process = ProcessPlan {
        args: vec![PROGRAM.to_owned()],
        cwd: "/".to_owned(),
        capabilities: Some(everything()),
        ..ProcessPlan::default()
    };
    let plan = ChildPlan {
        init: None,
        joins: vec![],
        unshare: 0,
        new_user_namespace: false,
        cgroup_files: 0,
        seccomp: None,
        process,
    };
    let request = Request {
        plan,
        clone_flags: 0,
        pid_namespace: None,
        joins: vec![],
        cgroup: Join::None,
        maps: None,
        hooks: None,
    };
    let spawned = spawn(engine, request).await.expect("a process");
    assert_eq!(spawned.process.wait().await, 0);
}

fn everything() -> agent::container::plan::process::Capabilities {
    let all = (1 << 41) - 1;
    agent::container::plan::process::Capabilities {
        bounding: all,
        effective: all,
        permitted: all,
        ..Default::default()
    }
}
