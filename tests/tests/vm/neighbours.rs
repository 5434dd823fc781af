// SPDX-License-Identifier: Apache-2.0
//! Containers that are stuck in every way there is, and their busy neighbours, which must not notice.

use std::fs;
use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use protocols::oci;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tests::container::{READ, Stream};
use tests::vm::{SHARED, shared_storage};
use tests::{Container, Refusal, Vm, artifacts, story, vm_story};
use tokio::task::JoinHandle;

/// How many containers are busy.
const BUSY: usize = 20;

/// How often each call is measured, without and with stuck neighbours.
const ROUNDS: usize = 30;

/// How slow the slowest answer may be, in times of the usual one and at least. This is no measure of speed, which a loaded host does
/// not have: it finds out who waited for a time limit, of which a removal has ten seconds.
const SLOWEST: (u32, Duration) = (100, Duration::from_secs(5));

/// Some computing, some processes, some output, and a breath, without end.
const WORK: &str = "while :; do
        i=0; while [ $i -lt 300 ]; do i=$((i + 1)); done
        seq 20; usleep 200000
    done";

/// A container that works, and its reader on the host.
async fn busy(vm: &Vm, number: usize) -> Container {
    let c = vm
        .container(&format!("busy-{number}"))
        .sh(WORK)
        .start()
        .await;
    let reader = c.clone();
    // It ends with the container: the answer is then empty, or that there is no such process.
    tokio::spawn(async move {
        while reader
            .try_read(Stream::Stdout, READ)
            .await
            .is_ok_and(|piece| !piece.is_empty())
        {}
    });
    c
}

/// How long each call took, sorted.
struct Times {
    check: Vec<Duration>,
    exec: Vec<Duration>,
    kill: Vec<Duration>,
}

/// Asks for health, for an exec to its end, and for another's death, in one busy container after the other.
async fn measure(vm: &Vm, busy: &[Container]) -> Times {
    let (mut check, mut exec, mut kill) = (Vec::new(), Vec::new(), Vec::new());
    for c in busy.iter().cycle().take(ROUNDS) {
        check.push(timed(async { vm.rpc().check().await.expect("Check is answered") }).await);
        exec.push(timed(async { assert_eq!(c.sh("echo quick").await.ok(), "quick") }).await);
        let victim = c.exec(&["sleep", "100000"]).start().await;
        let death = async {
            victim.signal(9).await;
            assert_eq!(victim.wait().await, 137);
        };
        kill.push(timed(death).await);
    }
    for times in [&mut check, &mut exec, &mut kill] {
        times.sort();
    }
    Times { check, exec, kill }
}

async fn timed<T>(call: impl Future<Output = T>) -> Duration {
    let began = Instant::now();
    call.await;
    began.elapsed()
}

fn median(sorted: &[Duration]) -> Duration {
    sorted[sorted.len() / 2]
}

/// Prints the figures side by side, and insists that no answer waited for a time limit.
fn compare(quiet: &Times, stuck: &Times) {
    let calls = [
        ("Check", &quiet.check, &stuck.check),
        ("exec", &quiet.exec, &stuck.exec),
        ("kill", &quiet.kill, &stuck.kill),
    ];
    let mut table =
        String::from("ms: median, 95th of 100, slowest; without and with stuck neighbours");
    for (name, quiet, stuck) in calls {
        let figures = |sorted: &[Duration]| {
            let at = [sorted.len() / 2, sorted.len() * 95 / 100, sorted.len() - 1];
            at.map(|n| format!("{:8.2}", sorted[n].as_secs_f64() * 1e3))
                .join("")
        };
        table.push_str(&format!(
            "\n  {name:<6}{} |{}",
            figures(quiet),
            figures(stuck)
        ));
    }
    story::say(&table);
    for (name, quiet, stuck) in calls {
        let (usual, slowest) = (median(quiet), stuck[stuck.len() - 1]);
        assert!(
            slowest < (usual * SLOWEST.0).max(SLOWEST.1),
            "{name} waited for something: {table}"
        );
    }
}

/// The host's file-system daemon of this VM: stopped, and every process of the guest that asks it for something with it.
struct Stopped(Vec<Pid>);

impl Stopped {
    fn stop(vm: &Vm) -> Stopped {
        let dir = vm.machine().dir().to_string_lossy().into_owned();
        let of_this_vm = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            let program = line.split('\0').next().unwrap_or_default();
            program.ends_with("virtiofsd") && line.contains(&dir)
        };
        let pids: Vec<Pid> = fs::read_dir("/proc")
            .expect("/proc is there")
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(of_this_vm)
            .filter_map(Pid::from_raw)
            .collect();
        assert!(!pids.is_empty(), "the VM has a virtiofsd");
        for &pid in &pids {
            kill_process(pid, Signal::STOP).expect("our own process can be stopped");
        }
        Stopped(pids)
    }

    fn go_on(self) {
        for &pid in &self.0 {
            kill_process(pid, Signal::CONT).expect("our own process can go on");
        }
    }
}

/// A hook that does not end, with the tests' programs in `root`.
fn hung(root: &str) -> oci::Hook {
    let mut hook = oci::Hook::new();
    hook.Path = format!("{root}/bin/tail");
    hook.Args = ["tail", "-f", "/dev/null"].map(str::to_owned).to_vec();
    hook.Timeout = 100_000;
    hook
}

/// Asks again and again until it is granted.
fn insist<F>(mut ask: impl FnMut() -> F + Send + 'static) -> JoinHandle<()>
where
    F: Future<Output = Result<(), Refusal>> + Send,
{
    tokio::spawn(async move {
        while let Err(refusal) = ask().await {
            assert!(refusal.code.is_some(), "{refusal}");
        }
    })
}

/// Waits until so many processes of this name are in this state: `S` asleep, `D` asleep where no signal reaches it.
async fn expect_state(probe: &Container, name: &str, state: char, count: usize) {
    let script = format!(
        "until [ $(cat /mnt/proc/[0-9]*/stat 2>/dev/null | grep -c '({name}) {state} ') = {count} ]; do usleep 50000; done"
    );
    probe.sh(&script).await.ok();
}

/// Boots a guest with a share that holds a root file system and `letter`.
async fn pod(share: &Path) -> Vm {
    artifacts::new_rootfs(&share.join("rootfs")).expect("a root file system");
    fs::write(share.join("letter"), "read me").expect("a file to share");
    let vm = Vm::boot(|g| g.share(share)).await;
    vm.create_sandbox(|r| r.storages.push(shared_storage()))
        .await;
    vm
}

#[test]
fn stuck_containers_do_not_hold_up_their_neighbours() {
    vm_story(async {
        let dir = TempDir::new().expect("a temporary directory");
        let vm = pod(dir.path()).await;
        let probe = vm.probe("probe").await;
        let mut neighbours = Vec::new();
        for number in 0..BUSY {
            neighbours.push(busy(&vm, number).await);
        }
        let quiet = measure(&vm, &neighbours).await;

        // Output that nobody reads.
        let unread = vm.container("unread").args(&["yes"]).start().await;
        // Input that nobody reads.
        let deaf = vm
            .container("deaf")
            .args(&["sleep", "100000"])
            .start()
            .await;
        let writer = tokio::spawn({
            let deaf = deaf.clone();
            async move { deaf.try_write(&vec![0; 1 << 20]).await }
        });
        // Paused, and asked to run something.
        let paused = vm
            .container("paused")
            .args(&["sleep", "100000"])
            .start()
            .await;
        paused.pause().await;
        // A hook that hangs, one that the agent runs and one that the container's process runs.
        let hook = |h: &mut oci::Spec| {
            h.Hooks
                .mut_or_insert_default()
                .Poststart
                .push(hung(vm.rootfs()))
        };
        let after = vm
            .container("hook-after")
            .args(&["sleep", "100000"])
            .spec(hook)
            .create()
            .await;
        let after_start = tokio::spawn({
            let after = after.clone();
            async move { after.try_start().await }
        });
        let hook = |h: &mut oci::Spec| {
            h.Hooks
                .mut_or_insert_default()
                .StartContainer
                .push(hung(""))
        };
        let before = vm
            .container("hook-before")
            .args(&["true"])
            .spec(hook)
            .create()
            .await;
        let before_start = tokio::spawn({
            let before = before.clone();
            async move { before.try_start().await }
        });
        expect_state(&probe, "tail", 'S', 2).await;
        // Beyond the reach of signals, and being removed.
        let asleep = vm
            .container("asleep")
            .bind("/mnt", SHARED)
            .sh("read x; exec sort /mnt/letter")
            .start()
            .await;
        let daemon = Stopped::stop(&vm);
        asleep.write(b"\n").await;
        expect_state(&probe, "sort", 'S', 1).await;
        let removal = insist({
            let asleep = asleep.clone();
            move || {
                let asleep = asleep.clone();
                async move { asleep.try_remove().await }
            }
        });
        // It slept like any other until it was killed.
        expect_state(&probe, "sort", 'D', 1).await;
        // A root that cannot be opened.
        let rootless = vm
            .container("rootless")
            .root(&format!("{SHARED}/rootfs"))
            .sh("echo root");
        let creation = tokio::spawn(rootless.try_create());

        let stuck = measure(&vm, &neighbours).await;

        // All of them still are.
        expect_state(&probe, "tail", 'S', 2).await;
        expect_state(&probe, "sort", 'D', 1).await;
        assert!(!writer.is_finished(), "nobody reads that input");
        assert!(
            !removal.is_finished(),
            "what cannot be killed is not removed"
        );
        assert!(!creation.is_finished(), "its root is not there");
        drop((after_start, before_start));
        compare(&quiet, &stuck);

        daemon.go_on();
        removal.await.expect("it can be removed now");
        let rootless = creation.await.expect("it ends").expect("it is created now");
        rootless.start().await;
        assert_eq!(rootless.output().await.ok(), "root");
        rootless.remove().await;
        paused.resume().await;
        for c in [&unread, &deaf, &paused, &after, &before] {
            c.kill_and_remove().await;
        }
        writer
            .await
            .expect("the write is answered")
            .expect_err("its reader is gone");
        for c in &neighbours {
            c.kill_and_remove().await;
        }
        vm.expect_alive().await;
    });
}
