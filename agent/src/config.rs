// SPDX-License-Identifier: Apache-2.0
//! The agent's configuration: kernel words, then the environment (protocol
//! section 8). A bad value is logged and its default kept: no word on the
//! kernel command line can keep the VM from starting.

use std::time::Duration;

use init::cmdline::CommandLine;
use log::LevelFilter;

/// What the agent was told; every field has a default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `agent.server_addr`, `KATA_AGENT_SERVER_ADDR`: where RPCs are served.
    pub server_addr: String,
    /// `agent.log`, `KATA_AGENT_LOG_LEVEL`.
    pub log_level: LevelFilter,
    /// `agent.log_vport`: vsock port of the log stream.
    pub log_port: Option<u32>,
    /// `agent.passfd_listener_port`: vsock port of the host's connections for streams.
    pub passfd_port: Option<u32>,
    /// `agent.container_pipe_size`: bytes of the output pipes; 0 = the kernel's default.
    pub container_pipe_size: u32,
    /// `agent.hotplug_timeout`: how long a device may take to appear.
    pub hotplug_timeout: Duration,
    /// `agent.cdi_timeout`: how long the description of a CDI device may.
    pub cdi_timeout: Duration,
    /// `agent.visible_cdi_devices`: containers may ask for CDI devices by `VISIBLE_CDI_DEVICES`.
    pub visible_cdi_devices: bool,
    /// `agent.cdh_api_timeout`: how long the confidential-data-hub may take to answer.
    pub cdh_api_timeout: Duration,
    /// `agent.image_pull_timeout`: how long it may take to pull an image.
    pub image_pull_timeout: Duration,
    /// `agent.secure_storage_integrity`: encrypted volumes are also protected against changes.
    pub secure_storage_integrity: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server_addr: "vsock://-1:1024".to_owned(),
            log_level: LevelFilter::Info,
            log_port: None,
            passfd_port: None,
            container_pipe_size: 0,
            hotplug_timeout: Duration::from_secs(3),
            cdi_timeout: Duration::from_secs(100),
            visible_cdi_devices: false,
            cdh_api_timeout: Duration::from_secs(50),
            image_pull_timeout: Duration::from_secs(1200),
            secure_storage_integrity: true,
        }
    }
}

/// Words of Kata's agent that would have an effect there and have none here.
const UNSUPPORTED: [&str; 4] = [
    "agent.config_file",
    "agent.debug_console",
    "agent.debug_console_vport",
    "agent.trace",
];

impl Config {
    /// From the kernel command line and the environment. The second part names
    /// what could not be used, for the log: there is none yet.
    pub fn read(
        cmdline: &CommandLine,
        env: impl Fn(&str) -> Option<String>,
    ) -> (Self, Vec<String>) {
        let mut config = Self::default();
        let mut complaints = Vec::new();
        for word in cmdline.words() {
            if UNSUPPORTED.contains(&word.key) {
                complaints.push(format!(
                    "Kernel word '{}' has no effect: not supported yet",
                    word.key
                ));
            } else if let Some(value) = word.value
                && config.apply(word.key, value).is_none()
            {
                complaints.push(format!(
                    "Kernel word '{}={value}' ignored: no valid value",
                    word.key
                ));
            }
        }
        if let Some(address) = env("KATA_AGENT_SERVER_ADDR").filter(|address| !address.is_empty()) {
            config.server_addr = address;
        }
        if let Some(level) = env("KATA_AGENT_LOG_LEVEL").and_then(|word| level(&word)) {
            config.log_level = level;
        }
        (config, complaints)
    }

    /// `None` if the word is one of ours and its value is not usable.
    fn apply(&mut self, key: &str, value: &str) -> Option<()> {
        match key {
            "agent.server_addr" => {
                self.server_addr = Some(value).filter(|v| !v.is_empty())?.to_owned()
            }
            "agent.log" => self.log_level = level(value)?,
            "agent.log_vport" => self.log_port = Some(port(value)?),
            "agent.passfd_listener_port" => self.passfd_port = Some(port(value)?),
            "agent.container_pipe_size" => {
                self.container_pipe_size =
                    value.parse().ok().filter(|&size| size <= i32::MAX as u32)?;
            }
            "agent.hotplug_timeout" => self.hotplug_timeout = seconds(value)?,
            "agent.cdi_timeout" => self.cdi_timeout = seconds(value)?,
            "agent.visible_cdi_devices" => self.visible_cdi_devices = truth(value),
            "agent.cdh_api_timeout" => self.cdh_api_timeout = seconds(value)?,
            "agent.image_pull_timeout" => self.image_pull_timeout = seconds(value)?,
            "agent.secure_storage_integrity" => self.secure_storage_integrity = truth(value),
            _ => {}
        }
        Some(())
    }
}

fn port(value: &str) -> Option<u32> {
    value.parse().ok().filter(|&port| port > 0)
}

/// At least one second, and at most a day, which no device takes.
fn seconds(value: &str) -> Option<Duration> {
    let seconds = value
        .parse()
        .ok()
        .filter(|seconds| (1..=86_400).contains(seconds))?;
    Some(Duration::from_secs(seconds))
}

/// `true`, or a number other than zero.
fn truth(value: &str) -> bool {
    value == "true" || value.parse::<i64>().is_ok_and(|number| number != 0)
}

/// Kata's level words; `critical` and its synonyms are more than `log` has.
fn level(word: &str) -> Option<LevelFilter> {
    Some(match word {
        "trace" => LevelFilter::Trace,
        "debug" => LevelFilter::Debug,
        "info" => LevelFilter::Info,
        "warn" | "warning" => LevelFilter::Warn,
        "error" | "critical" | "fatal" | "panic" => LevelFilter::Error,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &str) -> (Config, Vec<String>) {
        Config::read(&CommandLine::parse(words.as_bytes()), |_| None)
    }

    #[test]
    fn words_are_taken_and_the_last_one_wins() {
        let (config, complaints) = read(
            "quiet agent.log=debug agent.log_vport=1025 agent.log=warn agent.passfd_listener_port=1027 agent.container_pipe_size=4096",
        );
        assert_eq!(config.log_level, LevelFilter::Warn);
        assert_eq!(config.log_port, Some(1025));
        assert_eq!(config.passfd_port, Some(1027));
        assert_eq!(config.container_pipe_size, 4096);
        assert!(complaints.is_empty());
    }

    #[test]
    fn time_limits_and_switches() {
        let (config, complaints) = read(
            "agent.hotplug_timeout=7 agent.cdi_timeout=0 agent.image_pull_timeout=x agent.visible_cdi_devices=1 agent.secure_storage_integrity=no",
        );
        assert_eq!(config.hotplug_timeout, Duration::from_secs(7));
        assert_eq!(config.cdi_timeout, Duration::from_secs(100));
        assert!(config.visible_cdi_devices && !config.secure_storage_integrity);
        assert_eq!(complaints.len(), 2);
    }

    #[test]
    fn bug_a_bad_word_does_not_kill_the_vm() {
        let (config, complaints) = read(
            "agent.log=nonsense agent.log_vport=x agent.passfd_listener_port=0 agent.server_addr= agent.container_pipe_size=-1 agent.unknown=1",
        );
        assert_eq!(config, Config::default());
        assert_eq!(complaints.len(), 5);
    }

    #[test]
    fn words_without_effect_are_named() {
        let (config, complaints) =
            read("agent.debug_console agent.config_file=/x agent.trace=true quiet");
        assert_eq!(config, Config::default());
        assert_eq!(complaints.len(), 3);
    }

    #[test]
    fn the_environment_comes_last() {
        let words = CommandLine::parse(b"agent.server_addr=tcp://1.2.3.4:5 agent.log=error");
        let env = |name: &str| match name {
            "KATA_AGENT_SERVER_ADDR" => Some("unix:///run/a.sock".to_owned()),
            "KATA_AGENT_LOG_LEVEL" => Some("bad".to_owned()),
            _ => None,
        };
        let (config, _) = Config::read(&words, env);
        assert_eq!(config.server_addr, "unix:///run/a.sock");
        assert_eq!(config.log_level, LevelFilter::Error);
    }
}
