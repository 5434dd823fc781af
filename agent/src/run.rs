// SPDX-License-Identifier: Apache-2.0
//! The agent's own life: boot (as PID 1) or start (as a service), serve, end.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use init::Boot;
use init::cmdline::CommandLine;
use init::reaper::Reaper;
use init::uevent::UeventSocket;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

use crate::children::Children;
use crate::config::Config;
use crate::device::Devices;
use crate::observe::log as logging;
use crate::rpc::gate::Booted;
use crate::rpc::{self, status};
use crate::sandbox::Sandbox;
use crate::server::{self, Socket};

/// How long a thread without work stays.
const THREAD_KEEP_ALIVE: Duration = Duration::from_secs(2);

/// How long the answer to DestroySandbox may take to leave.
const FAREWELL: Duration = Duration::from_millis(500);

/// What the boot leaves for serving.
#[derive(Default)]
struct Early {
    config: Config,
    socket: Option<Socket>,
}

/// Runs as PID 1, from the kernel's hand-over to power-off.
pub fn as_init() -> ! {
    logging::start(logging::Sink::Kernel, log::LevelFilter::Info);
    let Some(runtime) = runtime() else {
        init::shutdown::power_off()
    };
    let mut early = Early::default();
    let boot = {
        let _inside = runtime.enter();
        init::begin(&mut |cmdline| early = open_early(cmdline))
    };
    match early.socket.take() {
        Some(socket) => runtime.block_on(serve(&early.config, socket, Some(boot))),
        // Nobody could ever reach this guest.
        None => log::error!("No RPC port: powering off"),
    }
    init::shutdown::power_off()
}

/// Runs as an ordinary process, for instance under systemd.
#[must_use]
pub fn as_service() -> ExitCode {
    logging::start(logging::Sink::Stderr, log::LevelFilter::Info);
    let Some(runtime) = runtime() else {
        return ExitCode::FAILURE;
    };
    let boot = init::service();
    let early = {
        let _inside = runtime.enter();
        open_early(&boot.cmdline)
    };
    let Some(socket) = early.socket else {
        return ExitCode::FAILURE;
    };
    runtime.block_on(serve(&early.config, socket, None));
    // A thread that still waits for the host is not waited for.
    runtime.shutdown_background();
    ExitCode::SUCCESS
}

fn runtime() -> Option<Runtime> {
    let built = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(crate::pool::THREADS)
        .thread_keep_alive(THREAD_KEEP_ALIVE)
        .thread_stack_size(256 << 10)
        .build();
    built
        .inspect_err(|error| log::error!("The event loop cannot be made: {error}"))
        .ok()
}

/// Reads the configuration and opens the RPC port, before anything that is not
/// needed for that. A bad address is replaced by the default one.
fn open_early(cmdline: &CommandLine) -> Early {
    let (config, complaints) = Config::read(cmdline, |name| std::env::var(name).ok());
    logging::start(logging::Sink::Kernel, config.log_level);
    for complaint in complaints {
        log::warn!("{complaint}");
    }
    let wanted = config.server_addr.clone();
    let opened = server::listen(&wanted).map(|socket| (socket, wanted.clone()));
    let opened = opened.or_else(|error| {
        log::error!("{}", status::chain(&error));
        let fallback = Config::default().server_addr;
        if fallback == wanted {
            Err(error)
        } else {
            server::listen(&fallback).map(|socket| (socket, fallback))
        }
    });
    if let Ok((Socket::Vsock(_), address)) = &opened {
        let port = address.rsplit(':').next().unwrap_or_default();
        // Hosts wait for this line, whatever else they want to hear.
        log::set_max_level(config.log_level.max(log::LevelFilter::Info));
        log::info!("listening on vsock port {port}");
        log::set_max_level(config.log_level);
    }
    Early {
        config,
        socket: opened.ok().map(|(socket, _)| socket),
    }
}

/// Serves until the sandbox ends. `boot` is the half-booted machine of PID 1;
/// its second half is done beside the first answers.
async fn serve(config: &Config, socket: Socket, boot: Option<Boot>) {
    let is_init = boot.is_some();
    let children = Children::default();
    match Reaper::new() {
        Ok(reaper) => drop(tokio::spawn(children.clone().serve(reaper))),
        Err(error) => return log::error!("Children cannot be reaped: {}", status::chain(&error)),
    }
    // Before the boot looks for what is there: what comes later is told.
    let devices = Devices::new(config.hotplug_timeout);
    match UeventSocket::open() {
        Ok(events) => drop(tokio::spawn(devices.clone().follow(events))),
        Err(error) => log::error!("New devices go unnoticed: {}", status::chain(&error)),
    }
    let booted = complete(boot);
    if let Some(port) = config.log_port {
        logging::enable_queue();
        tokio::spawn(serve_log(port));
    }
    let sandbox = Sandbox::new(config, children, devices);
    if let Some(port) = config.passfd_port {
        tokio::spawn(serve_streams(sandbox.clone(), port));
    }
    let mut server = ttrpc::r#async::Server::new()
        .add_listener(socket.into_listener())
        .register_service(rpc::services(sandbox.clone(), is_init, &booted));
    if let Err(error) = server.start().await {
        return log::error!("The RPC server cannot start: {error}");
    }
    until_end(&sandbox, is_init).await;
    server.stop_listen().await;
    // Whoever does not take the answer in time has lost it with the VM anyway.
    let _ = tokio::time::timeout(FAREWELL, server.disconnect()).await;
}

/// Completes the boot on the blocking pool.
fn complete(boot: Option<Boot>) -> Booted {
    let (done, booted) = watch::channel(boot.is_none());
    if let Some(mut boot) = boot {
        tokio::task::spawn_blocking(move || {
            init::complete(&mut boot);
            boot.phases.log();
            done.send_replace(true);
        });
    }
    booted
}

/// As a service, SIGTERM ends the agent too; PID 1 is ended by DestroySandbox only.
async fn until_end(sandbox: &Arc<Sandbox>, is_init: bool) {
    use tokio::signal::unix::{SignalKind, signal};
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut stream) if !is_init => drop(stream.recv().await),
            _ => std::future::pending().await,
        }
    };
    tokio::select! {
        () = sandbox.ended() => {}
        () = terminated => {
            if let Err(error) = sandbox.destroy().await {
                log::warn!("{}", status::chain(&error));
            }
        }
    }
}

/// Takes the host's connections for streams of processes.
async fn serve_streams(sandbox: Arc<Sandbox>, port: u32) {
    if let Err(error) = sandbox.arrivals().serve(port).await {
        let cause = status::chain(&error);
        log::error!("Streams cannot be passed over vsock port {port}: {cause}");
    }
}

/// The log port takes one reader after the other.
async fn serve_log(port: u32) {
    let mut socket = match server::listen(&format!("vsock://-1:{port}")) {
        Ok(socket) => socket,
        Err(error) => return log::error!("No log port: {}", status::chain(&error)),
    };
    loop {
        match socket.accept().await {
            Ok(peer) => logging::copy_to(protocols::chunked::ChunkedStream::new(peer)).await,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}
