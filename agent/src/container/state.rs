// SPDX-License-Identifier: Apache-2.0
//! The states of a container and the transitions between them.

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its first process waits for StartContainer.
    Created,
    /// StartContainer was called; stays so until the first process has exited.
    Running,
    /// RemoveContainer works on it; nothing else may.
    Removing,
}

/// Why a call does not fit the state of its container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// StartContainer was called before.
    #[error("Container was started before")]
    AlreadyStarted,
    /// The first process is gone without ever having been started.
    #[error("Container's first process has exited before it was started")]
    Dead,
    /// RemoveContainer is under way.
    #[error("Container is being removed")]
    Removing,
}

impl State {
    /// The state after StartContainer.
    ///
    /// # Errors
    /// [`StateError`] unless the container is created and alive.
    pub fn start(self, alive: bool) -> Result<Self, StateError> {
        match self {
            Self::Created if alive => Ok(Self::Running),
            Self::Created => Err(StateError::Dead),
            Self::Running => Err(StateError::AlreadyStarted),
            Self::Removing => Err(StateError::Removing),
        }
    }

    /// The state of a container that is to be removed.
    ///
    /// # Errors
    /// [`StateError::Removing`] if somebody else is at it.
    pub fn remove(self) -> Result<Self, StateError> {
        match self {
            Self::Created | Self::Running => Ok(Self::Removing),
            Self::Removing => Err(StateError::Removing),
        }
    }

    /// Whether a process may be added.
    ///
    /// # Errors
    /// [`StateError::Removing`].
    pub fn exec(self) -> Result<(), StateError> {
        if self == Self::Removing {
            Err(StateError::Removing)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_starts_once_and_only_alive() {
        assert_eq!(State::Created.start(true), Ok(State::Running));
        assert_eq!(State::Created.start(false), Err(StateError::Dead));
        assert_eq!(State::Running.start(true), Err(StateError::AlreadyStarted));
        assert_eq!(State::Removing.start(true), Err(StateError::Removing));
    }

    #[test]
    fn a_container_is_removed_once() {
        assert_eq!(State::Created.remove(), Ok(State::Removing));
        assert_eq!(State::Removing.remove(), Err(StateError::Removing));
        assert!(State::Running.exec().is_ok());
        assert!(State::Removing.exec().is_err());
    }
}
