// SPDX-License-Identifier: Apache-2.0
//! A thousand containers and five thousand execs in one guest: every answer right, and afterwards the guest as it was.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use guest_kernel::Arch;
use tests::container::Stream;
use tests::figures::Figures;
use tests::{Agent, Code, Container, Vm, artifacts, expect_refusal, story, vm_story};

/// How many containers there are. On an architecture that is emulated altogether, and with cgroup v1, it is a [`SHARE`]th of them.
const CONTAINERS: usize = 1000;

/// See [`CONTAINERS`].
const SHARE: usize = 10;

/// How many execs ten containers in a row have together; see [`execs_of`].
const EXECS_PER_TEN: usize = 50;

/// How many are busy with one container each at the same time, over a connection each.
const HANDS: usize = 8;

/// How many containers come before the first count: they make what stays for good, such as the parent cgroup and the agent's heap.
const WARM_UP: usize = 40;

/// By how much the agent's resident memory may grow: half a KiB a container, less than the least that one could leave behind.
const AGENT_KIB: u64 = 512;

/// By how much the guest's memory may shrink: 16 KiB a container, where a cgroup or a mount namespace that nobody gave back would
/// cost more.
const GUEST_KIB: u64 = 16 << 10;

/// How many containers and execs went as they should.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    containers: usize,
    execs: usize,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, more: Tally) {
        self.containers += more.containers;
        self.execs += more.execs;
    }
}

/// How many execs the container with this number gets: one in ten is never started and has none.
fn execs_of(number: usize) -> usize {
    match number % 10 {
        0 => 0,
        1..=5 => 6,
        _ => 5,
    }
}

/// The life of one container. Every tenth ends the same way.
async fn life(agent: &Agent, number: usize) -> Tally {
    let id = format!("crowd-{number}");
    let code = (number % 200) as i32;
    let sleep = || agent.container(&id).args(&["sleep", "100000"]);
    let line = || {
        agent
            .container(&id)
            .sh(&format!("read x; echo $x; echo bad >&2; exit {code}"))
    };
    let mut execs = 0;
    match number % 10 {
        0 => sleep().create().await.remove().await,
        1 | 2 => {
            let c = line().start().await;
            execs = work(&c, number).await;
            let word = format!("word-{number}\n");
            c.write(word.as_bytes()).await;
            let output = c.output().await;
            assert_eq!(
                (output.code, &*output.stdout, &*output.stderr),
                (code, &*word, "bad\n")
            );
            c.remove().await;
        }
        3 => {
            let c = line().tty().start().await;
            execs = work(&c, number).await;
            c.write(b"typed\n").await;
            c.expect("typed\r\ntyped\r\nbad\r\n").await;
            assert_eq!(c.wait().await, code);
            c.remove().await;
        }
        4 => {
            // Nobody waits and nobody reads: removal alone ends it.
            let c = agent
                .container(&id)
                .sh("echo unread; sleep 100000")
                .start()
                .await;
            execs = work(&c, number).await;
            c.remove().await;
        }
        5 => {
            // It ends by itself as soon as its last exec is told so, and takes an exec with it that nobody waits for.
            let c = line().start().await;
            execs = work(&c, number).await;
            let left = c.exec(&["sleep", "100000"]).start().await;
            c.write(b"\n").await;
            assert_eq!((c.wait().await, left.wait().await), (code, 137));
            execs += 1;
            c.remove().await;
        }
        6 => {
            let c = sleep().start().await;
            execs = work(&c, number).await;
            // Nobody handles SIGTERM in there.
            c.signal(15).await;
            assert_eq!(c.wait().await, 137);
            c.remove().await;
        }
        _ => {
            let c = sleep().start().await;
            execs = work(&c, number).await;
            c.kill_and_remove().await;
        }
    }
    Tally {
        containers: 1,
        execs,
    }
}

/// The execs of a container: of each kind in turn, half of them at the same time. Gives how many there were.
async fn work(c: &Container, number: usize) -> usize {
    let more = usize::from(number % 10 == 5);
    let count = execs_of(number) - more;
    let half = count / 2;
    let first = async {
        for turn in 0..half {
            exec(c, number + turn).await;
        }
    };
    let second = async {
        for turn in half..count {
            exec(c, number + turn).await;
        }
    };
    tokio::join!(first, second);
    count
}

/// One exec of the kind that its number says.
async fn exec(c: &Container, number: usize) {
    match number % 6 {
        0 => {
            let (code, script) = (
                number % 251,
                format!(
                    "echo out {number}; echo err {number} >&2; exit {}",
                    number % 251
                ),
            );
            let output = c.sh(&script).await;
            let expected = (
                code as i32,
                format!("out {number}\n"),
                format!("err {number}\n"),
            );
            assert_eq!((output.code, output.stdout, output.stderr), expected);
        }
        1 => {
            let cat = c.exec(&["cat"]).start().await;
            let text = format!("{number} ").repeat(100);
            cat.write(text.as_bytes()).await;
            cat.close_stdin().await;
            assert_eq!(cat.output().await.ok(), text.trim_end());
        }
        2 => {
            let sleep = c.exec(&["sleep", "100000"]).start().await;
            sleep.signal(9).await;
            assert_eq!(sleep.output().await.code, 137);
        }
        3 => {
            let shell = c
                .exec(&["sh", "-c", "read x; echo got $x; exit 7"])
                .tty()
                .start()
                .await;
            shell.write(format!("{number}\n").as_bytes()).await;
            shell.expect(&format!("got {number}\r\n")).await;
            assert_eq!(shell.wait().await, 7);
        }
        4 => {
            let refused = c.exec(&["no-such-program"]).try_start().await;
            expect_refusal(refused.map(drop), Code::INVALID_ARGUMENT, "no-such-program");
        }
        _ => {
            // More than a pipe holds, and a code that nobody asks for before the end of the output.
            let seq = c.exec(&["head", "-c", "100000", "/dev/zero"]).start().await;
            assert_eq!(seq.read_to_end(Stream::Stdout).await.len(), 100_000);
            assert_eq!(seq.wait().await, 0);
        }
    }
}

/// Leads containers `from..to` through their lives, [`HANDS`] at a time.
async fn crowd(vm: &Vm, from: usize, to: usize) -> Tally {
    let next = Arc::new(AtomicUsize::new(from));
    let mut hands = Vec::new();
    for _ in 0..HANDS {
        let (agent, next) = (vm.another_connection().await, Arc::clone(&next));
        hands.push(tokio::spawn(async move {
            let mut tally = Tally::default();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= to {
                    return tally;
                }
                tally += life(&agent, number).await;
            }
        }));
    }
    let mut all = Tally::default();
    for hand in hands {
        all += hand
            .await
            .unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
    }
    all
}

/// Leads `number` containers through `vm`.
async fn leave_the_guest_as_it_was(vm: &Vm, number: usize) {
    vm.create_sandbox(|_| ()).await;
    let probe = vm.probe("probe").await;
    crowd(vm, 0, WARM_UP).await;
    let before = Figures::of(&probe, "").await;

    let began = Instant::now();
    let done = crowd(vm, 0, number).await;
    let took = began.elapsed();

    let expected = Tally {
        containers: number,
        execs: number / 10 * EXECS_PER_TEN,
    };
    assert_eq!(done, expected, "none is lost");
    let after = Figures::of(&probe, "").await;
    story::say(&format!(
        "{} containers and {} execs in {:.1} s\n  before: {before}\n  after:  {after}",
        done.containers,
        done.execs,
        took.as_secs_f64()
    ));
    assert_eq!(after.counts, before.counts, "none is left");
    assert!(
        after.agent_kib <= before.agent_kib + AGENT_KIB,
        "the agent grew: {before}\n{after}"
    );
    assert!(
        after.available_kib + GUEST_KIB >= before.available_kib,
        "the guest lost memory: {before}\n{after}"
    );
    vm.expect_alive().await;
}

#[test]
fn a_thousand_containers_leave_the_guest_as_it_was() {
    vm_story(async {
        let foreign = Some(artifacts::arch()) != Arch::host();
        let number = if foreign {
            CONTAINERS / SHARE
        } else {
            CONTAINERS
        };
        let vm = Vm::boot(|g| g).await;
        leave_the_guest_as_it_was(&vm, number).await;
    });
}

/// Groups of version 1 are ten directories for each container.
#[test]
fn nor_do_they_leave_anything_in_cgroup_v1() {
    vm_story(async {
        let vm = Vm::boot(|g| g.words("systemd.unified_cgroup_hierarchy=0")).await;
        leave_the_guest_as_it_was(&vm, CONTAINERS / SHARE).await;
    });
}
