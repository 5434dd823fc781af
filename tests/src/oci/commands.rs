// SPDX-License-Identifier: Apache-2.0
//! The commands, one function each: what may be done in which state, and the calls that it comes to.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use protocols::agent::{
    CreateContainerRequest, ExecProcessRequest, GetOOMEventRequest, PauseContainerRequest,
    RemoveContainerRequest, ResumeContainerRequest, SignalProcessRequest, StartContainerRequest,
    StatsContainerRequest, StatsContainerResponse, UpdateContainerRequest,
};
use rootfs_builder::terminal::{RawTerminal, is_interactive};
use serde_json::{Value, json};
use tests::agent::Rpc;

use crate::cli::{Command, Create, Exec, Kill, Options, PsFormat, SPEC_VERSION, Update, advice};
use crate::host::{Host, refused};
use crate::record::{self, Phase, Record};
use crate::relay::{self, Target};
use crate::wire;

/// How long killed processes may take to be gone.
const DEATH: Duration = Duration::from_secs(10);

/// Does what was asked and gives the exit code.
pub async fn run(options: &Options) -> Result<u8> {
    let root = &options.root;
    match &options.command {
        Command::Create(args) => create(options, args, true).await.map(|_| 0),
        Command::Start { id } => start(options, id).await,
        Command::Run(args) => run_container(options, args).await,
        Command::State { id } => print(&Record::read(root, id)?.state()),
        Command::List => {
            let states: Vec<_> = Record::all(root).iter().map(Record::state).collect();
            print(&states.into())
        }
        Command::Kill(args) => kill(options, args).await,
        Command::Delete { id, force } => delete(options, id, *force).await,
        Command::Exec(args) => exec(options, args).await,
        Command::Ps { id, format } => ps(&Record::read(root, id)?, *format),
        Command::Pause { id } => pause(options, id).await,
        Command::Resume { id } => resume(options, id).await,
        Command::Update(args) => update(options, args).await,
        Command::Events {
            id,
            stats,
            interval,
        } => events(options, id, *stats, *interval).await,
        Command::Features => print(&features()),
        Command::Relay { id, exec, terminal } => {
            let (container, exec, terminal) = (id.clone(), exec.clone(), *terminal);
            relay::serve(
                options,
                Target {
                    container,
                    exec,
                    terminal,
                },
            )
            .await
        }
    }
}

fn print(value: &Value) -> Result<u8> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(0)
}

fn read_json(path: &Path) -> Result<Value> {
    let text = fs::read(path).with_context(|| format!("Cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is no JSON", path.display()))
}

fn write_pid(path: Option<&Path>, pid: u32) -> Result<()> {
    match path {
        Some(path) => fs::write(path, pid.to_string())
            .with_context(|| format!("Cannot write {}", path.display())),
        None => Ok(()),
    }
}

/// With `relayed`, a relay of its own has the caller's streams.
async fn create(options: &Options, args: &Create, relayed: bool) -> Result<Record> {
    let host = Host::lock(options)?;
    record::directory(&options.root, &args.id)?;
    if Record::read(&options.root, &args.id).is_ok() {
        let text = format!("Container {} exists already", args.id);
        return Err(advice(text, "delete it, or choose another id"));
    }
    let bundle = args.bundle.canonicalize();
    let bundle = bundle.with_context(|| format!("No bundle at {}", args.bundle.display()))?;
    let config = read_json(&bundle.join("config.json"))?;
    let spec = wire::spec(&config, &bundle)?;
    let terminal = spec.Process.Terminal;
    if relayed && terminal != args.console_socket.is_some() {
        let text = "A terminal and --console-socket belong together";
        return Err(advice(text, "see process.terminal in config.json"));
    }
    let rpc = host.connect_or_start(&spec.Hostname).await?;
    let request = CreateContainerRequest {
        container_id: args.id.clone(),
        exec_id: args.id.clone(),
        OCI: Some(with_cgroup(spec, &host, &args.id)).into(),
        ..Default::default()
    };
    let before = host.children();
    if let Err(refusal) = rpc.create_container(&request).await {
        host.end_if_idle(&rpc).await?;
        return Err(refused("CreateContainer")(refusal));
    }
    let made = async {
        let pid = new_child(&host, &before)?;
        let record = Record::new(&args.id, &bundle, &config, pid)?;
        record.write(&options.root)?;
        write_pid(args.pid_file.as_deref(), pid)?;
        if relayed {
            let target = Target {
                container: args.id.clone(),
                exec: String::new(),
                terminal,
            };
            relay::detach(options, &target, args.console_socket.as_deref())?;
        }
        anyhow::Ok(record)
    };
    match made.await {
        Ok(record) => Ok(record),
        Err(error) => {
            let _ = remove(&rpc, &args.id).await;
            if let Ok(record) = Record::read(&options.root, &args.id) {
                let _ = record.forget(&options.root);
            }
            host.end_if_idle(&rpc).await?;
            Err(error)
        }
    }
}

/// Containers of a caller that names no cgroup get one of their own.
fn with_cgroup(mut spec: protocols::oci::Spec, host: &Host<'_>, id: &str) -> protocols::oci::Spec {
    let linux = spec.Linux.mut_or_insert_default();
    if linux.CgroupsPath.is_empty() {
        linux.CgroupsPath = format!("/keelson-oci-{}/{id}", host.pid().unwrap_or_default());
    }
    spec
}

/// The protocol does not tell pids: it is the one process that the agent did not have before. Needs the lock.
fn new_child(host: &Host<'_>, before: &std::collections::BTreeSet<u32>) -> Result<u32> {
    let after = host.children();
    let new: Vec<_> = after.difference(before).copied().collect();
    match new[..] {
        [pid] => Ok(pid),
        _ => bail!("The agent has {} new processes instead of one", new.len()),
    }
}

async fn start(options: &Options, id: &str) -> Result<u8> {
    let host = Host::lock(options)?;
    let mut record = Record::read(&options.root, id)?;
    record.expect("start", &[Phase::Created])?;
    let rpc = host.connect().await?;
    let request = StartContainerRequest {
        container_id: id.to_owned(),
        ..Default::default()
    };
    rpc.start_container(&request)
        .await
        .map_err(refused("StartContainer"))?;
    record.set_phase(&options.root, Phase::Running)?;
    Ok(0)
}

async fn run_container(options: &Options, args: &Create) -> Result<u8> {
    let record = create(options, args, args.console_socket.is_some()).await?;
    let terminal = record.process["terminal"].as_bool().unwrap_or(false);
    let target = Target {
        container: args.id.clone(),
        exec: String::new(),
        terminal,
    };
    let rpc = Host::new(options).connect().await?;
    let raw = enter_raw(terminal && args.console_socket.is_none())?;
    start(options, &args.id).await?;
    let code = relay::carry(&rpc, &target).await;
    drop(raw);
    delete(options, &args.id, true).await?;
    code
}

fn enter_raw(wanted: bool) -> Result<Option<RawTerminal>> {
    let wanted = wanted && is_interactive();
    Ok(wanted.then(RawTerminal::enter).transpose()?)
}

/// By number, from 1.
const SIGNALS: &str = "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN TTOU URG \
    XCPU XFSZ VTALRM PROF WINCH IO PWR SYS";

fn signal_number(text: &str) -> Result<u32> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let named = SIGNALS
        .split_whitespace()
        .zip(1..)
        .find(|(known, _)| *known == name);
    let number = named.map(|(_, number)| number).or(text.parse().ok());
    number.ok_or_else(|| {
        advice(
            format!("{text:?} is no signal"),
            "a name like TERM or a number is",
        )
    })
}

async fn signal(rpc: &Rpc, id: &str, exec: &str, signal: u32) -> Result<()> {
    let request = SignalProcessRequest {
        container_id: id.to_owned(),
        exec_id: exec.to_owned(),
        signal,
        ..Default::default()
    };
    rpc.signal_process(&request)
        .await
        .map_err(refused("SignalProcess"))?;
    Ok(())
}

async fn kill(options: &Options, args: &Kill) -> Result<u8> {
    let number = signal_number(&args.signal)?;
    let record = Record::read(&options.root, &args.id)?;
    record.expect("kill", &[Phase::Created, Phase::Running, Phase::Paused])?;
    let rpc = Host::new(options).connect().await?;
    if args.all && number != libc::SIGKILL as u32 {
        // The protocol reaches all processes with SIGKILL only; here their pids are ours too.
        for pid in record.pids() {
            let pid =
                rustix::process::Pid::from_raw(pid.cast_signed()).context("No process is 0")?;
            let signal = rustix::process::Signal::from_named_raw(number.cast_signed());
            let signal = signal.with_context(|| format!("{number} has no name"))?;
            let _ = rustix::process::kill_process(pid, signal);
        }
        return Ok(0);
    }
    let exec = if args.all { "" } else { &args.id };
    signal(&rpc, &args.id, exec, number).await?;
    Ok(0)
}

async fn remove(rpc: &Rpc, id: &str) -> Result<()> {
    let request = RemoveContainerRequest {
        container_id: id.to_owned(),
        ..Default::default()
    };
    rpc.remove_container(&request)
        .await
        .map_err(refused("RemoveContainer"))?;
    Ok(())
}

async fn delete(options: &Options, id: &str, force: bool) -> Result<u8> {
    let host = Host::lock(options)?;
    let record = match Record::read(&options.root, id) {
        Err(_) if force => return Ok(0),
        record => record?,
    };
    if !force {
        record.expect("delete", &[Phase::Stopped])?;
    }
    // Without its agent a container is gone already.
    if host.pid().is_some() {
        let rpc = host.connect().await?;
        if record.phase() != Phase::Stopped {
            signal(&rpc, id, "", libc::SIGKILL as u32).await?;
            let end = Instant::now() + DEATH;
            while record.phase() != Phase::Stopped && Instant::now() < end {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        remove(&rpc, id).await?;
        record.forget(&options.root)?;
        host.end_if_idle(&rpc).await?;
    } else {
        record.forget(&options.root)?;
    }
    Ok(0)
}

async fn exec(options: &Options, args: &Exec) -> Result<u8> {
    let host = Host::lock(options)?;
    let record = Record::read(&options.root, &args.id)?;
    record.expect("exec in", &[Phase::Created, Phase::Running])?;
    let process = wire::process(&exec_process(&record, args)?)?;
    let terminal = process.Terminal;
    let relayed = args.detach || args.console_socket.is_some();
    if relayed && terminal != args.console_socket.is_some() {
        let text = "A terminal and --console-socket belong together when detached";
        return Err(advice(text, "leave --tty out, or give a socket"));
    }
    let rpc = host.connect().await?;
    let exec = format!("exec-{}", std::process::id());
    let request = ExecProcessRequest {
        container_id: args.id.clone(),
        exec_id: exec.clone(),
        process: Some(process).into(),
        ..Default::default()
    };
    let before = host.children();
    rpc.exec_process(&request)
        .await
        .map_err(refused("ExecProcess"))?;
    if args.pid_file.is_some() {
        // One that has ended already has no pid to tell.
        write_pid(args.pid_file.as_deref(), new_child(&host, &before)?)?;
    }
    drop(host);
    let target = Target {
        container: args.id.clone(),
        exec,
        terminal,
    };
    if relayed {
        relay::detach(options, &target, args.console_socket.as_deref())?;
    }
    if args.detach {
        return Ok(0);
    }
    let _raw = enter_raw(terminal)?;
    relay::carry(&rpc, &target).await
}

/// The container's process with what was asked instead.
fn exec_process(record: &Record, args: &Exec) -> Result<Value> {
    if let Some(path) = &args.process {
        let mut process = read_json(path)?;
        if args.tty {
            process["terminal"] = true.into();
        }
        return Ok(process);
    }
    if args.args.is_empty() {
        return Err(advice(
            "There is nothing to execute",
            "give a program, or --process FILE",
        ));
    }
    let mut process = record.process.clone();
    process["args"] = json!(args.args);
    process["terminal"] = args.tty.into();
    let mut env: Vec<Value> = process["env"].as_array().cloned().unwrap_or_default();
    env.extend(args.env.iter().map(|variable| json!(variable)));
    process["env"] = env.into();
    if let Some(cwd) = &args.cwd {
        process["cwd"] = json!(cwd);
    }
    if let Some(user) = &args.user {
        let (uid, gid) = user.split_once(':').unwrap_or((user, "0"));
        let number = |text: &str| {
            let number = text.parse::<u32>().ok();
            number.ok_or_else(|| {
                advice(
                    format!("{user:?} is no user"),
                    "UID or UID:GID is, in numbers",
                )
            })
        };
        process["user"] = json!({ "uid": number(uid)?, "gid": number(gid)? });
    }
    Ok(process)
}

fn ps(record: &Record, format: PsFormat) -> Result<u8> {
    let pids = record.pids();
    if format == PsFormat::Json {
        return print(&json!(pids));
    }
    println!("{:>8} COMMAND", "PID");
    for pid in pids {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        println!("{pid:>8} {}", command.trim_end());
    }
    Ok(0)
}

async fn pause(options: &Options, id: &str) -> Result<u8> {
    let host = Host::lock(options)?;
    let mut record = Record::read(&options.root, id)?;
    record.expect("pause", &[Phase::Running])?;
    let request = PauseContainerRequest {
        container_id: id.to_owned(),
        ..Default::default()
    };
    let paused = host.connect().await?.pause_container(&request).await;
    paused.map_err(refused("PauseContainer"))?;
    record.set_phase(&options.root, Phase::Paused)?;
    Ok(0)
}

async fn resume(options: &Options, id: &str) -> Result<u8> {
    let host = Host::lock(options)?;
    let mut record = Record::read(&options.root, id)?;
    record.expect("resume", &[Phase::Paused])?;
    let request = ResumeContainerRequest {
        container_id: id.to_owned(),
        ..Default::default()
    };
    let resumed = host.connect().await?.resume_container(&request).await;
    resumed.map_err(refused("ResumeContainer"))?;
    record.set_phase(&options.root, Phase::Running)?;
    Ok(0)
}

async fn update(options: &Options, args: &Update) -> Result<u8> {
    let record = Record::read(&options.root, &args.id)?;
    record.expect("update", &[Phase::Created, Phase::Running, Phase::Paused])?;
    let mut resources = match &args.resources {
        Some(path) if path.as_os_str() == "-" => serde_json::from_reader(std::io::stdin())?,
        Some(path) => read_json(path)?,
        None => json!({}),
    };
    for (section, field, value) in [
        ("memory", "limit", args.memory.map(Value::from)),
        ("memory", "swap", args.memory_swap.map(Value::from)),
        (
            "memory",
            "reservation",
            args.memory_reservation.map(Value::from),
        ),
        ("cpu", "shares", args.cpu_shares.map(Value::from)),
        ("cpu", "quota", args.cpu_quota.map(Value::from)),
        ("cpu", "period", args.cpu_period.map(Value::from)),
        ("cpu", "cpus", args.cpuset_cpus.clone().map(Value::from)),
        ("cpu", "mems", args.cpuset_mems.clone().map(Value::from)),
        ("pids", "limit", args.pids_limit.map(Value::from)),
    ] {
        if let Some(value) = value {
            resources[section][field] = value;
        }
    }
    let request = UpdateContainerRequest {
        container_id: args.id.clone(),
        resources: Some(wire::resources(&resources)?).into(),
        ..Default::default()
    };
    let rpc = Host::new(options).connect().await?;
    rpc.update_container(&request)
        .await
        .map_err(refused("UpdateContainer"))?;
    Ok(0)
}

/// One line of JSON for each event, until the container stops.
async fn events(options: &Options, id: &str, once: bool, interval: u64) -> Result<u8> {
    let record = Record::read(&options.root, id)?;
    record.expect("watch", &[Phase::Created, Phase::Running, Phase::Paused])?;
    let rpc = Host::new(options).connect().await?;
    let request = StatsContainerRequest {
        container_id: id.to_owned(),
        ..Default::default()
    };
    if once {
        let stats = rpc
            .stats_container(&request)
            .await
            .map_err(refused("StatsContainer"))?;
        println!("{}", stats_event(id, &stats));
        return Ok(0);
    }
    tokio::spawn(oom_events(rpc.clone(), id.to_owned()));
    while record.phase() != Phase::Stopped {
        if let Ok(stats) = rpc.stats_container(&request).await {
            println!("{}", stats_event(id, &stats));
        }
        tokio::time::sleep(Duration::from_secs(interval)).await;
    }
    Ok(0)
}

async fn oom_events(rpc: Rpc, id: String) {
    while let Ok(event) = rpc.get_oom_event(&GetOOMEventRequest::new()).await {
        if event.container_id == id {
            println!("{}", json!({ "type": "oom", "id": id }));
        }
    }
}

fn stats_event(id: &str, stats: &StatsContainerResponse) -> Value {
    let group = &stats.cgroup_stats;
    let (cpu, memory, pids) = (&group.cpu_stats, &group.memory_stats, &group.pids_stats);
    let networks = stats.network_stats.iter().map(|network| {
        json!({ "Name": network.name, "RxBytes": network.rx_bytes, "TxBytes": network.tx_bytes })
    });
    json!({
        "type": "stats",
        "id": id,
        "data": {
            "cpu": { "usage": {
                "total": cpu.cpu_usage.total_usage,
                "kernel": cpu.cpu_usage.usage_in_kernelmode,
                "user": cpu.cpu_usage.usage_in_usermode,
            } },
            "memory": { "usage": {
                "usage": memory.usage.usage,
                "max": memory.usage.max_usage,
                "limit": memory.usage.limit,
                "failcnt": memory.usage.failcnt,
            } },
            "pids": { "current": pids.current, "limit": pids.limit },
            "network_interfaces": networks.collect::<Vec<_>>(),
        },
    })
}

/// What an engine may ask for (features.md of the runtime specification).
fn features() -> Value {
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPEC_VERSION,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": tests::spec::ALL_CAPABILITIES.to_vec(),
            "cgroup": { "v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": false },
            "seccomp": {
                "enabled": true,
                "actions": ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
                    "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP"],
                "operators": ["SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT",
                    "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE"],
                "supportedFlags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
                    "SECCOMP_FILTER_FLAG_TSYNC"],
            },
            "mountExtensions": { "idmap": { "enabled": false } },
        },
    })
}

#[cfg(test)]
mod tests_of_signals {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [
            ("TERM", 15),
            ("SIGKILL", 9),
            ("9", 9),
            ("sigsys", 31),
            ("40", 40),
        ] {
            assert_eq!(signal_number(text).unwrap(), number, "{text}");
        }
        assert!(signal_number("NOPE").is_err() && signal_number("").is_err());
    }
}
