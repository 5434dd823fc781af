// SPDX-License-Identifier: Apache-2.0
//! Waiting for something that the kernel announces, with a deadline.
//!
//! Owns the only loop that waits for a device: look, subscribe, look again
//! after each message that matters. It never looks on a timer and never waits
//! without end. What is looked for, and what its absence means, is the caller's.

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::uevent::{Received, Uevent, UeventError, UeventSocket};

/// Calls `look` until it finds something, at the latest until `patience` is
/// over: then `None`. `matters` tells the messages after which to look again;
/// `failed` makes an error of `look`'s kind of one of the socket.
pub(crate) fn wait_for<T, E>(
    patience: Duration,
    matters: fn(&Uevent<'_>) -> bool,
    failed: &dyn Fn(UeventError) -> E,
    look: &mut dyn FnMut() -> Result<Option<T>, E>,
) -> Result<Option<T>, E> {
    // Mostly it is there already, and a subscription would be for nothing.
    if let Some(found) = look()? {
        return Ok(Some(found));
    }
    let mut events = UeventSocket::open().map_err(failed)?;
    let deadline = Instant::now() + patience;
    // Subscribed: now nothing can come without our seeing it. Look again for
    // what came before that, and then after each message.
    loop {
        if let Some(found) = look()? {
            return Ok(Some(found));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        next(&mut events, matters, deadline).map_err(failed)?;
    }
}

/// A message about a disk or a partition. The kernel makes their nodes in
/// `/dev` before it sends it.
pub(crate) fn about_disks(event: &Uevent<'_>) -> bool {
    event.subsystem == "block"
}

/// Returns after a message that matters, or at the latest when time is up.
fn next(
    events: &mut UeventSocket,
    matters: fn(&Uevent<'_>) -> bool,
    deadline: Instant,
) -> Result<(), UeventError> {
    loop {
        loop {
            match events.receive()? {
                Received::Event(event) if matters(&event) => return Ok(()),
                // Messages that never end must not put off the deadline.
                Received::Event(_) if Instant::now() >= deadline => return Ok(()),
                Received::Event(_) => {}
                // What we wait for may be among the lost.
                Received::Overflow => return Ok(()),
                Received::Empty => break,
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        // Rounded up to a whole millisecond, lest the last one be spent here.
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1));
        let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout.unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(UeventError::Receive(errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(20);

    #[test]
    fn what_is_there_needs_no_subscription() {
        let found = wait_for(
            Duration::ZERO,
            about_disks,
            &|error| panic!("{error}"),
            &mut || Ok::<_, ()>(Some(7)),
        );
        assert_eq!(found, Ok(Some(7)));
    }

    #[test]
    fn a_look_that_fails_ends_the_wait() {
        let mut looks = 0;
        let found: Result<Option<()>, _> =
            wait_for(PATIENCE, about_disks, &|_| "socket", &mut || {
                looks += 1;
                Err("look")
            });
        assert_eq!((found, looks), (Err("look"), 1));
    }

    #[test]
    fn what_never_comes_is_looked_for_after_the_subscription_too() {
        let mut looks = 0;
        let found = wait_for(PATIENCE, about_disks, &|error| error, &mut || {
            looks += 1;
            Ok(None::<()>)
        });
        match found {
            Ok(found) => assert!(found.is_none() && looks >= 2),
            Err(error) => eprintln!(
                "SKIPPED what_never_comes_is_looked_for_after_the_subscription_too: \
                 no uevent socket here: {error}"
            ),
        }
    }
}
