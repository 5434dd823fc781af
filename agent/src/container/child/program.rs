// SPDX-License-Identifier: Apache-2.0
//! The program itself: working directory, look-up, last descriptors, the wait
//! for StartContainer, execution.

use std::convert::Infallible;
use std::ffi::CString;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{chdir, execve, getcwd};

use super::{Child, Naming, StepError};
use crate::container::plan::ProcessPlan;
use crate::launch::message::Report;

/// Largest `/etc/passwd` looked at: it is the container's and may be anything.
const MAX_PASSWD: u64 = 1 << 20;

/// Enters the working directory, which a new container makes if it is missing.
/// A directory that leads out of the root is refused (CVE-2024-21626).
pub fn enter_cwd(child: &mut Child) -> Result<(), StepError> {
    let cwd = child.plan.process.cwd.as_str();
    umask(Mode::from_bits_truncate(0o022));
    if child.plan.init.is_some() {
        // The path is inside the new root by now; if it cannot be made, entering it fails.
        let _ = std::fs::create_dir_all(cwd);
    }
    chdir(cwd).map_err(|errno| StepError::request(format!("working directory '{cwd}'"), errno))?;
    // The kernel says "(unreachable)" in front of a directory outside the root.
    match getcwd() {
        Ok(path) if path.is_absolute() => Ok(()),
        _ => Err(StepError::request(
            format!("working directory '{cwd}' outside the root"),
            Errno::EACCES,
        )),
    }
}

/// Looks the program up as execvp(3) would, so that a missing one is an error
/// of the request rather than an exit status, and completes the environment.
pub fn find(child: &mut Child) -> Result<(), StepError> {
    let process = &mut child.plan.process;
    if !process.env.iter().any(|entry| entry.starts_with("HOME=")) {
        process.env.push(format!("HOME={}", home_of(process.uid)));
    }
    let name = &process.args[0];
    match look_up(name, search_path(&process.env)) {
        Ok(_) => Ok(()),
        Err(errno) => Err(StepError::request(
            format!("'{name}' not found or not executable"),
            errno,
        )),
    }
}

fn search_path(env: &[String]) -> &str {
    env.iter()
        .rev()
        .find_map(|entry| entry.strip_prefix("PATH="))
        .unwrap_or("/bin:/usr/bin")
}

fn look_up(name: &str, search: &str) -> Result<PathBuf, Errno> {
    if name.contains('/') {
        return executable(Path::new(name)).map(|()| PathBuf::from(name));
    }
    let mut worst = Errno::ENOENT;
    for directory in search.split(':') {
        let candidate = Path::new(if directory.is_empty() { "." } else { directory }).join(name);
        match executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(Errno::EACCES) => worst = Errno::EACCES,
            Err(_) => {}
        }
    }
    Err(worst)
}

fn executable(path: &Path) -> Result<(), Errno> {
    let meta = path
        .metadata()
        .map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::ENOENT)))?;
    if meta.is_file() && meta.permissions().mode() & 0o111 != 0 {
        Ok(())
    } else {
        Err(Errno::EACCES)
    }
}

fn home_of(uid: u32) -> String {
    let mut text = String::new();
    let read = std::fs::File::open("/etc/passwd")
        .and_then(|file| file.take(MAX_PASSWD).read_to_string(&mut text));
    if read.is_err() {
        return "/".to_owned();
    }
    home_in(&text, uid).unwrap_or("/").to_owned()
}

fn home_in(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        let found = fields.next()?.parse::<u32>().ok()? == uid;
        let home = fields.nth(2)?;
        (found && !home.is_empty()).then_some(home)
    })
}

/// Everything but 0, 1 and 2 closes when the program is executed, whatever
/// flags it was opened with (CVE-2024-21626).
pub fn close_descriptors(_: &mut Child) -> Result<(), StepError> {
    crate::launch::clone::close_on_exec_from(3).naming(|| "descriptors".into())
}

/// A container's first process says that it is ready and waits for
/// StartContainer. An exec just goes on: that its socket closes is the report.
pub fn await_start(child: &mut Child) -> Result<(), StepError> {
    if child.plan.init.is_some() {
        child.report(&Report::Ready).naming(|| "report".into())?;
        return child.await_go();
    }
    if child.plan.process.terminal {
        child.report(&Report::Ready).naming(|| "report".into())?;
    }
    Ok(())
}

/// Executes the program; returns only if that failed.
pub fn execute(process: &ProcessPlan) -> Errno {
    match try_execute(process) {
        Ok(never) => match never {},
        Err(errno) => errno,
    }
}

fn try_execute(process: &ProcessPlan) -> nix::Result<Infallible> {
    let strings = |list: &[String]| -> nix::Result<Vec<CString>> {
        list.iter()
            .map(|s| CString::new(s.as_str()).map_err(|_| Errno::EINVAL))
            .collect()
    };
    let path = look_up(&process.args[0], search_path(&process.env))?;
    let path =
        CString::new(path.into_os_string().into_encoded_bytes()).map_err(|_| Errno::EINVAL)?;
    execve(&path, &strings(&process.args)?, &strings(&process.env)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_as_a_shell_would() {
        assert_eq!(
            look_up("sh", "/nonexistent:/bin").unwrap(),
            Path::new("/bin/sh")
        );
        assert_eq!(look_up("/bin/sh", "").unwrap(), Path::new("/bin/sh"));
        assert_eq!(
            look_up("no-such-program", "/bin:/usr/bin").unwrap_err(),
            Errno::ENOENT
        );
        assert_eq!(look_up("passwd", "/etc").unwrap_err(), Errno::EACCES);
        assert_eq!(look_up("/etc", "").unwrap_err(), Errno::EACCES);
    }

    #[test]
    fn the_home_directory_comes_from_passwd() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken line\nuser:x:1000:1000::/home/user:/bin/sh\nnone:x:7:7:::";
        assert_eq!(home_in(passwd, 0), Some("/root"));
        assert_eq!(home_in(passwd, 1000), Some("/home/user"));
        assert_eq!(home_in(passwd, 7), None);
        assert_eq!(home_in(passwd, 8), None);
    }

    #[test]
    fn the_last_path_wins() {
        let env = ["PATH=/a".to_owned(), "X=1".to_owned(), "PATH=/b".to_owned()];
        assert_eq!(search_path(&env), "/b");
    }
}
