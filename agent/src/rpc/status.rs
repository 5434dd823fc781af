// SPDX-License-Identifier: Apache-2.0
//! The only place where an error becomes a status on the wire.
//!
//! Codes are those that Kata's hosts react to (protocol sections 1.8 and 3.0);
//! the text is the chain of causes joined by `: `, never Debug output.

use std::error::Error;

use ttrpc::{Code, get_status};

use crate::container::ContainerError;
use crate::container::hooks::HookError;
use crate::container::plan::PlanError;
use crate::container::spawn::SpawnError;
use crate::container::state::StateError;
use crate::device::DeviceError;
use crate::device::cdi::CdiError;
use crate::files::FileError;
use crate::guest::GuestError;
use crate::hotplug::HotplugError;
use crate::launch::LaunchError;
use crate::network::NetworkError;
use crate::network::iptables::IptablesError;
use crate::sandbox::SandboxError;
use crate::stdio::StdioError;
use crate::storage::StorageError;
use crate::volume::VolumeError;

/// The texts of an error and its causes.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// An error that knows its code.
pub trait Coded: Error + Sized {
    /// The code on the wire.
    fn code(&self) -> Code;

    /// The error as a handler returns it.
    fn status(self) -> ttrpc::Error {
        failure(self.code(), &chain(&self))
    }
}

/// A status with a text.
#[must_use]
pub fn failure(code: Code, text: &str) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(get_status(code, text))
}

/// A sub-message that has to be there.
#[must_use]
pub fn missing(what: &'static str) -> ttrpc::Error {
    PlanError::Missing(what).status()
}

/// For the calls whose hosts know an unknown container as INTERNAL: Start,
/// Remove, ExecProcess, WriteStdin, GetDiagnosticData, and SignalProcess for a
/// whole container.
#[must_use]
pub fn lifecycle(error: SandboxError) -> ttrpc::Error {
    match error {
        SandboxError::UnknownContainer(_) => failure(Code::INTERNAL, &chain(&error)),
        other => other.status(),
    }
}

fn bad_if(bad: bool) -> Code {
    if bad {
        Code::INVALID_ARGUMENT
    } else {
        Code::INTERNAL
    }
}

impl Coded for PlanError {
    fn code(&self) -> Code {
        match self {
            Self::Unsupported(_) => Code::UNIMPLEMENTED,
            _ => Code::INVALID_ARGUMENT,
        }
    }
}

impl Coded for SandboxError {
    fn code(&self) -> Code {
        match self {
            Self::Exists(_) | Self::ContainerExists(_) => Code::ALREADY_EXISTS,
            Self::Ending => Code::FAILED_PRECONDITION,
            Self::UnknownContainer(_) => Code::INVALID_ARGUMENT,
            Self::UnknownProcess { .. } => Code::NOT_FOUND,
            Self::Container(error) => error.code(),
            Self::Storage(error) => error.code(),
            Self::Device(error) => error.code(),
            Self::Cdi(error) => error.code(),
            Self::Plan(error) => error.code(),
            Self::GuestsOwn(_) => Code::INVALID_ARGUMENT,
            Self::Module(crate::sandbox::ModuleError::Name(_)) => Code::INVALID_ARGUMENT,
            Self::Module(_) | Self::Setup(..) | Self::Launch(_) | Self::Task => Code::INTERNAL,
        }
    }
}

impl Coded for ContainerError {
    fn code(&self) -> Code {
        match self {
            Self::State {
                source: StateError::NotPausable(_) | StateError::NotPaused(_),
                ..
            } => Code::INTERNAL,
            Self::State { .. } | Self::GivenUp(_) => Code::FAILED_PRECONDITION,
            Self::Hook(error) => error.code(),
            Self::ExecExists(_) => Code::ALREADY_EXISTS,
            Self::Bundle(error) => bad_if(error.is_bad_input()),
            Self::Cgroup(error) => bad_if(error.is_bad_input()),
            Self::Spawn(error) => error.code(),
            Self::Share(error) => bad_if(error.is_bad_input()),
            Self::Namespace { bad_request, .. } => bad_if(*bad_request),
            Self::NoSharedPid => Code::FAILED_PRECONDITION,
            Self::Signal { source, .. } => bad_if(source.raw_os_error() == Some(libc::EINVAL)),
            Self::Start { .. }
            | Self::Diagnostics(_)
            | Self::NotFrozen(_)
            | Self::Stuck(_)
            | Self::Task(_) => Code::INTERNAL,
        }
    }
}

impl Coded for SpawnError {
    fn code(&self) -> Code {
        match self {
            Self::Step { bad_request, .. } => bad_if(*bad_request),
            Self::Hook(error) => error.code(),
            Self::Launch(
                LaunchError::Start(_) | LaunchError::Lost(_) | LaunchError::Refused { .. },
            )
            | Self::Prepare(..)
            | Self::Died => Code::INTERNAL,
        }
    }
}

impl Coded for HookError {
    fn code(&self) -> Code {
        bad_if(matches!(self, Self::Path { .. }))
    }
}

impl Coded for StdioError {
    fn code(&self) -> Code {
        match self {
            Self::NoTerminal => Code::UNAVAILABLE,
            Self::Passed => Code::FAILED_PRECONDITION,
            Self::InputClosed | Self::Io(..) => Code::INTERNAL,
        }
    }
}

impl Coded for StorageError {
    fn code(&self) -> Code {
        if self.is_not_implemented() {
            Code::UNIMPLEMENTED
        } else {
            bad_if(self.is_bad_input())
        }
    }
}

impl Coded for DeviceError {
    fn code(&self) -> Code {
        match self.is_not_implemented() {
            true => Code::UNIMPLEMENTED,
            false => bad_if(self.is_bad_input()),
        }
    }
}

impl Coded for CdiError {
    fn code(&self) -> Code {
        bad_if(self.is_bad_input())
    }
}

impl Coded for FileError {
    fn code(&self) -> Code {
        bad_if(self.is_bad_input())
    }
}

impl Coded for VolumeError {
    fn code(&self) -> Code {
        match self {
            Self::FileSystem { .. } | Self::NotOnDisk { .. } => Code::FAILED_PRECONDITION,
            other => bad_if(other.is_bad_input()),
        }
    }
}

impl Coded for GuestError {
    fn code(&self) -> Code {
        bad_if(self.is_bad_input())
    }
}

impl Coded for HotplugError {
    fn code(&self) -> Code {
        bad_if(matches!(self, Self::Sysfs(error) if error.is_bad_input()))
    }
}

impl Coded for NetworkError {
    fn code(&self) -> Code {
        match self.is_too_much() {
            true => Code::RESOURCE_EXHAUSTED,
            false => bad_if(self.is_bad_input()),
        }
    }
}

impl Coded for IptablesError {
    fn code(&self) -> Code {
        Code::INTERNAL
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn causes_are_joined_without_debug_text() {
        let error = StdioError::Io("stdin", io::Error::from_raw_os_error(libc::EPIPE));
        assert_eq!(
            chain(&error),
            "Stream stdin failed: Broken pipe (os error 32)"
        );
    }

    #[test]
    fn an_unknown_container_is_internal_only_for_life_cycle_calls() {
        let unknown = || SandboxError::UnknownContainer("x".to_owned());
        assert_eq!(unknown().code(), Code::INVALID_ARGUMENT);
        let ttrpc::Error::RpcStatus(status) = lifecycle(unknown()) else {
            panic!("no status")
        };
        assert_eq!(status.code(), Code::INTERNAL);
    }
}
