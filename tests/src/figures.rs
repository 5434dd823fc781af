// SPDX-License-Identifier: Apache-2.0
//! How much there is of everything in a guest: what a story compares before and after.
//!
//! Counted from inside, by a container of [`Agent::probe`](crate::Agent::probe), so that it is the same for VMs and services.

use std::fmt;

use crate::container::Container;

/// Prints one figure a line. Threads of the agent's blocking pool go two seconds after their last work: it is to be back at one before
/// the rest is looked at, and ten seconds are five times what that needs. The agent is who has a launcher.
const SCRIPT: &str = r#"
    for p in /mnt/proc/[0-9]*; do
        read name 2>/dev/null < $p/comm && [ "$name" = keelson-launch ] && set -- $(grep PPid: $p/status) && agent=$2
    done
    test -d /mnt/proc/$agent/fd || exit 1
    for i in $(seq 100); do
        set -- /mnt/proc/$agent/task/*
        [ $# = 1 ] && break
        sleep 0.1
    done
    echo threads $#
    echo descriptors $(ls /mnt/proc/$agent/fd | wc -l)
    echo mounts $(wc -l < /mnt/proc/$agent/mountinfo)
    echo cgroups $(find "/mnt/sys/fs/cgroup/$CGROUPS" -type d | wc -l)
    echo bundles $(ls /mnt/run/kata-containers | wc -l)
    echo files $(find /mnt/run -xdev ! -path '/mnt/run/image*' | wc -l)
    echo children $(cat /mnt/proc/$agent/task/*/children | wc -w)
    echo zombies $(grep -l '^State:.Z' /mnt/proc/[0-9]*/status 2>/dev/null | wc -l)
    echo ipc $(ipcs | grep -c 0x)
    echo memory $(grep VmRSS: /mnt/proc/$agent/status | tr -dc 0-9)
    echo available $(grep MemAvailable: /mnt/proc/meminfo | tr -dc 0-9)
"#;

/// The figures of a guest whose containers are idle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Figures {
    /// What has to be the same afterwards, a name and a number a line.
    pub counts: String,
    /// The agent's resident memory in KiB.
    pub agent_kib: u64,
    /// The memory in KiB that is free in the guest or can be made so.
    pub available_kib: u64,
}

impl Figures {
    /// Counts. Of the cgroups those below `cgroups`, which is empty for all.
    pub async fn of(probe: &Container, cgroups: &str) -> Figures {
        let counted = probe
            .exec(&["sh", "-c", SCRIPT])
            .process(|p| p.Env.push(format!("CGROUPS={cgroups}")))
            .run()
            .await;
        let text = counted.ok();
        let number = |text: &str| text.parse().expect("a number");
        let (counts, memory) = text.split_once("\nmemory ").expect("the agent has memory");
        let (agent, available) = memory
            .split_once("\navailable ")
            .expect("the guest has memory");
        Figures {
            counts: counts.to_owned(),
            agent_kib: number(agent),
            available_kib: number(available),
        }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.counts.replace('\n', ", ");
        let (agent, available) = (self.agent_kib, self.available_kib);
        write!(
            f,
            "{counts}, agent's memory {agent} KiB, available {available} KiB"
        )
    }
}
