// SPDX-License-Identifier: Apache-2.0
//! OOM kills on their way to GetOOMEvent: the watches over containers and the
//! queue of what they saw. Never waits for whoever asks, and asks nobody twice.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::cgroup::OomWatch;
use crate::container::Container;

/// From how many events on a container's are one: so there are never more than
/// this and the number of containers.
const MANY: usize = 100;

/// How long a caller is kept for a look: on version 1 that takes a thread of
/// the blocking pool, and those may all be stuck.
const PATIENCE: Duration = Duration::from_millis(200);

/// The sandbox's OOM events; one per sandbox.
#[derive(Default)]
pub struct OomEvents {
    state: Mutex<State>,
    arrived: Notify,
}

#[derive(Default)]
struct State {
    queue: VecDeque<String>,
    watches: HashMap<String, Watched>,
    closed: bool,
}

struct Watched {
    watch: Arc<OomWatch>,
    task: AbortHandle,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl OomEvents {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is a single operation on a map or the queue.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports kills in a container from now on. Costs it three system calls, one
    /// descriptor and one task; a container that cannot be watched runs without.
    pub fn watch(self: &Arc<Self>, container: &Container) {
        let id = container.id().as_str();
        let watch = match container.watch_oom() {
            Ok(Some(watch)) => Arc::new(watch),
            Ok(None) => return,
            Err(error) => {
                let cause = crate::rpc::status::chain(&error);
                return log::warn!("OOM kills in container {id} will not be reported: {cause}");
            }
        };
        let task = tokio::spawn(follow(self.clone(), id.to_owned(), watch.clone()));
        let task = task.abort_handle();
        let watched = Watched { watch, task };
        let mut state = self.state();
        // After the end nobody would forget it.
        if !state.closed {
            state.watches.insert(id.to_owned(), watched);
        }
    }

    /// Reports what the watch over a container has not seen yet. Called when a
    /// process was killed and before a container is removed: the kernel's own
    /// report may come up to 10 ms after the kill.
    pub async fn look(&self, id: &str) {
        let watch = self.state().watches.get(id).map(|w| w.watch.clone());
        if let Some(watch) = watch
            && let Ok(Some(true)) = tokio::time::timeout(PATIENCE, watch.look()).await
        {
            self.push(id);
            // Whoever waits for the event is to have it before the caller goes on.
            tokio::task::yield_now().await;
        }
    }

    /// Ends the watch over a container. What was seen is still reported.
    pub fn forget(&self, id: &str) {
        self.state().watches.remove(id);
    }

    fn push(&self, id: &str) {
        let mut state = self.state();
        let known = || state.queue.iter().any(|queued| queued == id);
        if state.closed || (state.queue.len() >= MANY && known()) {
            return;
        }
        state.queue.push_back(id.to_owned());
        drop(state);
        self.arrived.notify_one();
    }

    /// Waits for the next event and takes it: the id of its container, or `None`
    /// when the sandbox has ended. Any number may wait; one that is dropped
    /// meanwhile takes nothing with it, because an event leaves the queue only
    /// as this returns.
    pub async fn next(&self) -> Option<String> {
        loop {
            // Before the look at the queue, or an end between the two were missed.
            let arrived = self.arrived.notified();
            {
                let mut state = self.state();
                if let Some(id) = state.queue.pop_front() {
                    return Some(id);
                }
                if state.closed {
                    return None;
                }
            }
            arrived.await;
        }
    }

    /// Ends all watches and everybody's waiting.
    pub fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.queue.clear();
        state.watches.clear();
        drop(state);
        self.arrived.notify_waiters();
    }
}

async fn follow(events: Arc<OomEvents>, id: String, watch: Arc<OomWatch>) {
    while watch.killed().await {
        log::debug!("Container {id}: a process was killed for lack of memory");
        events.push(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::task::Poll;

    fn events() -> Arc<OomEvents> {
        Arc::default()
    }

    /// Polls once, so that the future waits; it must have nothing to return yet.
    async fn begin<F: Future>(future: std::pin::Pin<&mut F>) {
        let mut future = Some(future);
        std::future::poll_fn(move |context| {
            let polled = future.take().map(|f| f.poll(context));
            assert!(matches!(polled, Some(Poll::Pending)), "it has to wait");
            Poll::Ready(())
        })
        .await;
    }

    #[tokio::test]
    async fn bug_every_event_is_reported_in_order() {
        let events = events();
        for id in ["a", "b", "a"] {
            events.push(id);
        }
        for id in ["a", "b", "a"] {
            assert_eq!(events.next().await.as_deref(), Some(id));
        }
        let mut next = Box::pin(events.next());
        begin(next.as_mut()).await;
        events.push("c");
        assert_eq!(next.await.as_deref(), Some("c"));
    }

    /// The reference's second caller waits for a lock that the first one holds.
    #[tokio::test]
    async fn bug_several_callers_get_one_event_each() {
        let events = events();
        let (mut one, mut two) = (Box::pin(events.next()), Box::pin(events.next()));
        begin(one.as_mut()).await;
        begin(two.as_mut()).await;
        events.push("a");
        events.push("b");
        let mut got = [one.await.unwrap(), two.await.unwrap()];
        got.sort();
        assert_eq!(got, ["a", "b"]);
    }

    /// In the reference an event that a cancelled call has popped is lost.
    #[tokio::test]
    async fn bug_a_caller_that_goes_away_takes_no_event_with_it() {
        let events = events();
        let mut gone = Box::pin(events.next());
        let mut stays = Box::pin(events.next());
        begin(gone.as_mut()).await;
        begin(stays.as_mut()).await;
        // The first in the line is told, and goes before it can look.
        events.push("a");
        drop(gone);
        assert_eq!(stays.await.as_deref(), Some("a"));
        let mut gone = Box::pin(events.next());
        begin(gone.as_mut()).await;
        events.push("b");
        drop(gone);
        assert_eq!(events.next().await.as_deref(), Some("b"));
    }

    #[tokio::test]
    async fn a_queue_that_nobody_reads_stays_small() {
        let events = events();
        for n in 0..1000 {
            events.push(["a", "b"][n % 2]);
        }
        events.push("late");
        events.push("late");
        assert_eq!(events.state().queue.len(), MANY + 1);
        for _ in 0..MANY {
            assert_ne!(events.next().await.as_deref(), Some("late"));
        }
        assert_eq!(events.next().await.as_deref(), Some("late"));
    }

    #[tokio::test]
    async fn the_end_reaches_everybody() {
        let events = events();
        let (mut one, mut two) = (Box::pin(events.next()), Box::pin(events.next()));
        begin(one.as_mut()).await;
        begin(two.as_mut()).await;
        events.close();
        assert_eq!((one.await, two.await), (None, None));
        events.push("a");
        assert_eq!(events.next().await, None);
    }
}
