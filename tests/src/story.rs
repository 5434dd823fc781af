// SPDX-License-Identifier: Apache-2.0
//! Runs a test's story: an async block on the one runtime of the test process, with a deadline.
//!
//! One runtime for the whole process, because VMs and services are shared between the tests of a process and their connections live
//! in the runtime that opened them.

use std::future::Future;
use std::io::Write;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use crate::artifacts;
use crate::ledger::{self, Entry};

/// The variable that, set to `1`, skips every story that needs a VM.
pub const SKIP_VM: &str = "KEELSON_SKIP_VM";

/// The variable that sets a story's deadline in seconds.
pub const DEADLINE: &str = "KEELSON_STORY_SECONDS";

/// Long enough for any story on a loaded machine without KVM; what exceeds it hangs.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(300);

/// A story of so many seconds says so: all of them share the time that a run may take.
const LONG: u64 = 12;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a tokio runtime can be made")
});

/// The runtime that stories, and all they share, live in.
pub fn runtime() -> &'static Runtime {
    &RUNTIME
}

/// Tells a story that needs a VM, unless VMs are to be skipped.
pub fn vm_story(story: impl Future<Output = ()>) {
    if std::env::var(SKIP_VM).is_ok_and(|v| v == "1") {
        ledger::note(Entry::Skipped);
        return;
    }
    ledger::note(Entry::Vm);
    // Outside the story's deadline: a test that is run by itself compiles the guest first.
    runtime().block_on(artifacts::guest());
    tell(story);
}

/// Tells a story of the agent as a service, without a VM.
pub fn service_story(story: impl Future<Output = ()>) {
    ledger::note(Entry::Service);
    // As above; if it fails, it does so again, with its reason, when the story starts its agent.
    let _ = artifacts::service_agent();
    tell(story);
}

/// Prints what a story measured, whether it passes or not: straight to the descriptor, because libtest would capture `eprintln!`.
pub fn say(text: &str) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("unnamed");
    // Figures are for who reads the log; nobody reads a log that cannot be written.
    let _ = writeln!(std::io::stderr(), "{name}: {text}");
}

fn tell(story: impl Future<Output = ()>) {
    let limit = deadline();
    runtime().block_on(async {
        // Pinned here and not moved into the timeout, so that on expiry the story is dropped by the panic's unwinding: what it
        // holds then knows that it failed, and prints its console.
        tokio::pin!(story);
        let began = Instant::now();
        if tokio::time::timeout(limit, &mut story).await.is_err() {
            panic!("The story did not end within {} s", limit.as_secs());
        }
        let seconds = began.elapsed().as_secs();
        if seconds >= LONG {
            say(&format!("told in {seconds} s"));
        }
    });
}

fn deadline() -> Duration {
    let seconds = std::env::var(DEADLINE).ok().and_then(|v| v.parse().ok());
    seconds.map_or(DEFAULT_DEADLINE, Duration::from_secs)
}
