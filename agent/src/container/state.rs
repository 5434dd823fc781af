// SPDX-License-Identifier: Apache-2.0
//! The states of a container and the transitions between them: one function,
//! tested as a table. It knows neither processes nor cgroups.

use std::fmt;

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its first process waits for StartContainer.
    Created,
    /// StartContainer was called.
    Running,
    /// Being frozen; processes on their way in are waited for.
    Pausing {
        /// StartContainer was called before.
        started: bool,
    },
    /// Every process stands still.
    Paused {
        /// StartContainer was called before.
        started: bool,
    },
    /// The first process has exited.
    Stopped {
        /// StartContainer was called before.
        started: bool,
    },
    /// RemoveContainer works on it; nothing else may.
    Removing,
    /// RemoveContainer has killed it and could not take it away: it may be
    /// called again, nothing else.
    Dying,
}

/// What happens to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// StartContainer.
    Start,
    /// PauseContainer is called.
    Pause,
    /// The freezer says that everything stands still.
    Frozen,
    /// PauseContainer gives up.
    PauseFailed,
    /// ResumeContainer.
    Resume,
    /// The first process has exited.
    Exit,
    /// RemoveContainer is called.
    Remove,
    /// RemoveContainer gives up.
    RemoveFailed,
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
    /// Not in this state.
    #[error("Container is {0}")]
    Is(State),
    /// Only what is created or running can be paused.
    #[error("failed to pause container: current status is: {0}")]
    NotPausable(State),
    /// Only what is paused can be resumed.
    #[error("container status is: {0}, not paused")]
    NotPaused(State),
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Pausing { .. } => "being paused",
            Self::Paused { .. } => "paused",
            Self::Stopped { .. } => "stopped",
            Self::Removing => "being removed",
            Self::Dying => "dying",
        })
    }
}

impl State {
    /// The state after an event.
    ///
    /// # Errors
    /// [`StateError`] for what cannot happen now; the state stays.
    pub fn after(self, event: Event) -> Result<Self, StateError> {
        use State::{Created, Dying, Paused, Pausing, Removing, Running, Stopped};
        match (event, self) {
            (Event::Start, Created) => Ok(Running),
            (Event::Start, Running | Stopped { started: true }) => Err(StateError::AlreadyStarted),
            (Event::Start, Stopped { started: false }) => Err(StateError::Dead),
            (Event::Pause, Created) => Ok(Pausing { started: false }),
            (Event::Pause, Running) => Ok(Pausing { started: true }),
            (Event::Pause, other) => Err(StateError::NotPausable(other)),
            (Event::Frozen, Pausing { started }) => Ok(Paused { started }),
            (Event::Frozen, other) => Err(StateError::NotPausable(other)),
            (Event::PauseFailed, Pausing { started }) | (Event::Resume, Paused { started }) => {
                Ok(Self::thawed(started))
            }
            (Event::Resume, other) => Err(StateError::NotPaused(other)),
            (Event::Exit, Removing | Dying | Stopped { .. }) => Ok(self),
            (Event::Exit, other) => Ok(Stopped {
                started: other.started(),
            }),
            (Event::Remove, Removing) => Err(StateError::Is(Removing)),
            (Event::Remove, _) => Ok(Removing),
            (Event::RemoveFailed, Removing) => Ok(Dying),
            (Event::Start | Event::PauseFailed | Event::RemoveFailed, other) => {
                Err(StateError::Is(other))
            }
        }
    }

    /// A container that was paused before it was started can still be started.
    fn thawed(started: bool) -> Self {
        if started {
            Self::Running
        } else {
            Self::Created
        }
    }

    fn started(self) -> bool {
        match self {
            Self::Created => false,
            Self::Running | Self::Removing | Self::Dying => true,
            Self::Pausing { started } | Self::Paused { started } | Self::Stopped { started } => {
                started
            }
        }
    }

    /// Whether a process may be added. `outlives_init`: its pid namespace does
    /// not end with the container's first process.
    ///
    /// # Errors
    /// [`StateError::Is`].
    pub fn exec(self, outlives_init: bool) -> Result<(), StateError> {
        match self {
            Self::Created | Self::Running => Ok(()),
            Self::Stopped { .. } if outlives_init => Ok(()),
            other => Err(StateError::Is(other)),
        }
    }

    /// Whether limits may be changed.
    ///
    /// # Errors
    /// [`StateError::Is`].
    pub fn update(self) -> Result<(), StateError> {
        match self {
            Self::Removing | Self::Dying => Err(StateError::Is(self)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Event::*;
    use State::*;

    const STATES: [State; 10] = [
        Created,
        Running,
        Pausing { started: false },
        Pausing { started: true },
        Paused { started: false },
        Paused { started: true },
        Stopped { started: false },
        Stopped { started: true },
        Removing,
        Dying,
    ];

    const EVENTS: [Event; 8] = [
        Start,
        Pause,
        Frozen,
        PauseFailed,
        Resume,
        Exit,
        Remove,
        RemoveFailed,
    ];

    /// Every transition that is legal. What is not in here is refused.
    const LEGAL: &[(State, Event, State)] = &[
        (Created, Start, Running),
        (Created, Pause, Pausing { started: false }),
        (Running, Pause, Pausing { started: true }),
        (
            Pausing { started: false },
            Frozen,
            Paused { started: false },
        ),
        (Pausing { started: true }, Frozen, Paused { started: true }),
        (Pausing { started: false }, PauseFailed, Created),
        (Pausing { started: true }, PauseFailed, Running),
        (Paused { started: false }, Resume, Created),
        (Paused { started: true }, Resume, Running),
        (Created, Exit, Stopped { started: false }),
        (Running, Exit, Stopped { started: true }),
        (Pausing { started: false }, Exit, Stopped { started: false }),
        (Pausing { started: true }, Exit, Stopped { started: true }),
        (Paused { started: false }, Exit, Stopped { started: false }),
        (Paused { started: true }, Exit, Stopped { started: true }),
        (Stopped { started: false }, Exit, Stopped { started: false }),
        (Stopped { started: true }, Exit, Stopped { started: true }),
        (Removing, Exit, Removing),
        (Dying, Exit, Dying),
        (Created, Remove, Removing),
        (Running, Remove, Removing),
        (Pausing { started: false }, Remove, Removing),
        (Pausing { started: true }, Remove, Removing),
        (Paused { started: false }, Remove, Removing),
        (Paused { started: true }, Remove, Removing),
        (Stopped { started: false }, Remove, Removing),
        (Stopped { started: true }, Remove, Removing),
        (Dying, Remove, Removing),
        (Removing, RemoveFailed, Dying),
    ];

    #[test]
    fn only_legal_transitions_happen() {
        for state in STATES {
            for event in EVENTS {
                let legal = LEGAL.iter().find(|(s, e, _)| (*s, *e) == (state, event));
                let next = state.after(event).ok();
                assert_eq!(next, legal.map(|(.., next)| *next), "{state:?} {event:?}");
            }
        }
    }

    #[test]
    fn refusals_name_the_reason() {
        let text = |state: State, event| state.after(event).unwrap_err().to_string();
        assert_eq!(Running.after(Start), Err(StateError::AlreadyStarted));
        let dead = Stopped { started: false };
        assert_eq!(dead.after(Start), Err(StateError::Dead));
        assert_eq!(
            text(Paused { started: true }, Pause),
            "failed to pause container: current status is: paused"
        );
        assert_eq!(
            text(Running, Resume),
            "container status is: running, not paused"
        );
        assert_eq!(text(Removing, Remove), "Container is being removed");
    }

    #[test]
    fn processes_are_added_to_what_lives_only() {
        for state in STATES {
            let lives = matches!(state, Created | Running);
            let stopped = matches!(state, Stopped { .. });
            assert_eq!(state.exec(false).is_ok(), lives, "{state:?}");
            assert_eq!(state.exec(true).is_ok(), lives || stopped, "{state:?}");
            assert_eq!(state.update().is_ok(), !matches!(state, Removing | Dying));
        }
    }
}
