// SPDX-License-Identifier: Apache-2.0
//! The agent's half of the one reaper: every child's exit goes to who started
//! it, container processes and helper programs alike.
//!
//! A child can exit before its pid is known here. Whoever is about to start
//! one therefore says so first ([`Children::expect`]); while anybody does, exits
//! without an owner are kept.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use init::reaper::Reaper;
use nix::unistd::Pid;
use tokio::sync::watch;

/// The exit of one child: `None` until it is reaped, then its code (128+N for
/// death by signal N).
pub type Exit = watch::Receiver<Option<i32>>;

#[derive(Debug, Default)]
struct State {
    owned: HashMap<Pid, watch::Sender<Option<i32>>>,
    unclaimed: HashMap<Pid, i32>,
    expecting: usize,
}

/// Who waits for which child; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Children {
    state: Arc<Mutex<State>>,
}

impl Children {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is a single map operation: nothing is left half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announces a child. Must be called before it is started.
    #[must_use]
    pub fn expect(&self) -> Expectation {
        self.state().expecting += 1;
        Expectation {
            children: self.clone(),
        }
    }

    /// Tells the owner of `pid`, if there is one or may yet be.
    pub fn reaped(&self, pid: Pid, code: i32) {
        let mut state = self.state();
        match state.owned.remove(&pid) {
            // Nobody listening any more is fine.
            Some(owner) => drop(owner.send(Some(code))),
            None if state.expecting > 0 => drop(state.unclaimed.insert(pid, code)),
            None => {}
        }
    }

    /// Reaps for as long as the agent lives.
    ///
    /// # Errors
    /// When the signal descriptor cannot be polled.
    pub async fn serve(self, reaper: Reaper) -> io::Result<()> {
        let mut reaper = crate::watch::watch(reaper)?;
        loop {
            let mut ready = reaper.readable_mut().await?;
            if let Err(error) = ready
                .get_inner_mut()
                .drain(|exit| self.reaped(exit.pid, exit.code()))
            {
                log::error!(
                    "Children could not be reaped: {}",
                    crate::rpc::status::chain(&error)
                );
            }
            ready.clear_ready();
        }
    }
}

/// The right to claim one child, see [`Children::expect`].
pub struct Expectation {
    children: Children,
}

impl Expectation {
    /// The exit of the child that turned out to be `pid`.
    #[must_use]
    pub fn claim(self, pid: Pid) -> Exit {
        let mut state = self.children.state();
        let code = state.unclaimed.remove(&pid);
        let (sender, receiver) = watch::channel(code);
        if code.is_none() {
            state.owned.insert(pid, sender);
        }
        receiver
    }
}

impl Drop for Expectation {
    fn drop(&mut self) {
        let mut state = self.children.state();
        state.expecting -= 1;
        if state.expecting == 0 {
            state.unclaimed.clear();
        }
    }
}

/// Waits for the exit code.
pub async fn code_of(exit: &mut Exit) -> i32 {
    // The sender is dropped after sending only; a closed channel without a code
    // would mean that the registry itself is gone.
    exit.wait_for(Option::is_some)
        .await
        .ok()
        .and_then(|code| *code)
        .unwrap_or(255)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_child_that_exits_before_it_is_claimed_is_not_lost() {
        let children = Children::default();
        let expectation = children.expect();
        children.reaped(Pid::from_raw(7), 3);
        children.reaped(Pid::from_raw(8), 4);
        let mut exit = expectation.claim(Pid::from_raw(7));
        assert_eq!(code_of(&mut exit).await, 3);
        assert!(
            children.state().unclaimed.is_empty(),
            "what nobody can claim is not kept"
        );
    }

    #[tokio::test]
    async fn all_waiters_get_the_code() {
        let children = Children::default();
        let exit = children.expect().claim(Pid::from_raw(9));
        let waiters: Vec<_> = (0..3)
            .map(|_| {
                let mut exit = exit.clone();
                tokio::spawn(async move { code_of(&mut exit).await })
            })
            .collect();
        tokio::task::yield_now().await;
        children.reaped(Pid::from_raw(9), 137);
        for waiter in waiters {
            assert_eq!(waiter.await.unwrap(), 137);
        }
    }

    #[test]
    fn orphans_leave_nothing_behind() {
        let children = Children::default();
        children.reaped(Pid::from_raw(11), 0);
        assert!(children.state().unclaimed.is_empty());
    }
}
