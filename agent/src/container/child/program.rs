// SPDX-License-Identifier: Apache-2.0
//! The program itself: working directory, look-up, last descriptors, the wait
//! for StartContainer, execution.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{chdir, getcwd};

use super::{Child, Naming, StepError};
use crate::container::plan::ProcessPlan;
use crate::launch::message::Report;

/// Largest `/etc/passwd` looked at: it is the container's and may be anything.
const MAX_PASSWD: u64 = 1 << 20;

/// Enters the working directory, which a new root has got by now.
/// A directory that leads out of the root is refused (CVE-2024-21626).
pub fn enter_cwd(child: &mut Child) -> Result<(), StepError> {
    let cwd = child.plan.process.cwd.as_str();
    umask(Mode::from_bits_truncate(0o022));
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
    let text = read_regular("/etc/passwd").unwrap_or_default();
    home_in(&text, uid).unwrap_or("/").to_owned()
}

/// A container may have put anything in a file's place: a FIFO would hold the
/// child for ever, a terminal would become its own.
fn read_regular(path: &str) -> io::Result<String> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut bytes = Vec::new();
    file.take(MAX_PASSWD).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
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

/// Executes the program under the container's filter; returns only if that
/// failed, with the step and the kernel's answer.
///
/// Everything that takes a system call is done before the filter is in force:
/// a profile needs to allow nothing but `execve(2)` on our behalf.
pub fn execute(child: &Child) -> (&'static str, Errno) {
    let image = match Image::of(&child.plan.process) {
        Ok(image) => image,
        Err(errno) => return ("exec", errno),
    };
    let (args, env) = (pointers(&image.args), pointers(&image.env));
    if let Some(filter) = &child.plan.seccomp
        && let Err(error) = filter.install()
    {
        let errno = error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw);
        return ("seccomp", errno);
    }
    ("exec", replace_process(&image.path, &args, &env))
}

/// The arguments of `execve(2)`, in the form that it takes.
struct Image {
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Image {
    fn of(process: &ProcessPlan) -> Result<Self, Errno> {
        let strings = |list: &[String]| -> Result<Vec<CString>, Errno> {
            list.iter()
                .map(|s| CString::new(s.as_str()).map_err(|_| Errno::EINVAL))
                .collect()
        };
        let path = look_up(&process.args[0], search_path(&process.env))?;
        Ok(Self {
            path: CString::new(path.into_os_string().into_encoded_bytes())
                .map_err(|_| Errno::EINVAL)?,
            args: strings(&process.args)?,
            env: strings(&process.env)?,
        })
    }
}

/// Valid for as long as the strings are.
fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    let ends = std::iter::once(std::ptr::null());
    strings.iter().map(|s| s.as_ptr()).chain(ends).collect()
}

/// One system call and nothing else: nix's would allocate first.
#[allow(unsafe_code)]
fn replace_process(
    path: &CStr,
    args: &[*const libc::c_char],
    env: &[*const libc::c_char],
) -> Errno {
    // SAFETY: all three are NUL-terminated, and what the pointers refer to
    // outlives the call: `execute` holds it.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    Errno::last()
}

/// Ends the process, whatever its filter denies.
#[allow(unsafe_code)]
pub fn leave(code: i32) -> ! {
    // SAFETY: exit_group(2) takes a number; it returns only if a filter denies it.
    unsafe { libc::syscall(libc::SYS_exit_group, code) };
    // Ends in an illegal instruction at last, for which no call is needed.
    std::process::abort()
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

    /// A filter lies between the look-up of the program and its execution; a
    /// FIFO in the place of the file would hold an exec for ever.
    #[test]
    fn only_an_ordinary_passwd_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passwd");
        nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o644)).unwrap();
        assert!(read_regular(path.to_str().unwrap()).is_err());
        assert!(read_regular("/dev/zero").is_err());
        std::fs::write(dir.path().join("real"), b"a\xffb").unwrap();
        let text = read_regular(dir.path().join("real").to_str().unwrap()).unwrap();
        assert_eq!(text, "a\u{fffd}b");
    }

    #[test]
    fn an_image_ends_its_lists_with_null() {
        let process = ProcessPlan {
            args: vec!["/bin/sh".into(), "-c".into()],
            env: vec!["A=b".into()],
            ..ProcessPlan::default()
        };
        let image = Image::of(&process).unwrap();
        assert_eq!(image.path.to_str().unwrap(), "/bin/sh");
        let args = pointers(&image.args);
        assert_eq!(args.len(), 3);
        assert!(args[2].is_null() && !args[0].is_null());
        assert!(pointers(&[])[0].is_null());
    }

    #[test]
    fn the_last_path_wins() {
        let env = ["PATH=/a".to_owned(), "X=1".to_owned(), "PATH=/b".to_owned()];
        assert_eq!(search_path(&env), "/b");
    }
}
