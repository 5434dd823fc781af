// SPDX-License-Identifier: Apache-2.0
//! Labels of the kernel's security modules: whether this kernel has a module
//! that can take them, and what a request for one comes to. Reads sysfs, never
//! sets a label: the child does.

use std::path::Path;

use super::PlanError;
use super::id::shorten;

/// A directory that sysfs has when SELinux is in force, whether its file
/// system is mounted there or not.
const SELINUX: &str = "/sys/fs/selinux";

/// `Y` when AppArmor is in force.
const APPARMOR: &str = "/sys/module/apparmor/parameters/enabled";

/// What the running kernel has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Modules {
    /// SELinux is in force.
    pub selinux: bool,
    /// AppArmor is in force.
    pub apparmor: bool,
}

impl Modules {
    /// Looks at the kernel.
    #[must_use]
    pub fn detect() -> Self {
        Self {
            selinux: Path::new(SELINUX).is_dir(),
            apparmor: std::fs::read(APPARMOR).is_ok_and(|text| text.starts_with(b"Y")),
        }
    }

    /// An SELinux context of `field`. Without SELinux it is an error: the
    /// container would run less confined than asked for.
    ///
    /// # Errors
    /// [`PlanError::Invalid`].
    pub fn selinux_label(
        self,
        field: &'static str,
        label: Option<&String>,
    ) -> Result<Option<String>, PlanError> {
        let Some(label) = label.filter(|label| !label.is_empty()) else {
            return Ok(None);
        };
        if label.chars().any(char::is_control) {
            let reason = "contains control characters";
            return Err(PlanError::invalid(field, shorten(label), reason));
        }
        if !self.selinux {
            let reason = "the guest's kernel has SELinux off";
            return Err(PlanError::invalid(field, shorten(label), reason));
        }
        Ok(Some(label.clone()))
    }

    /// An AppArmor profile. Container engines name one for every container,
    /// also for guests that have never heard of it: without AppArmor it is
    /// left out, and the log says so.
    ///
    /// # Errors
    /// [`PlanError::Invalid`].
    pub fn apparmor_profile(self, profile: Option<&String>) -> Result<Option<String>, PlanError> {
        let Some(profile) = profile.filter(|name| !matches!(name.as_str(), "" | "unconfined"))
        else {
            return Ok(None);
        };
        if profile.chars().any(char::is_control) {
            let reason = "contains control characters";
            let field = "process.apparmorProfile";
            return Err(PlanError::invalid(field, shorten(profile), reason));
        }
        if !self.apparmor {
            log::debug!("AppArmor profile '{profile}' left out: the guest's kernel has none");
            return Ok(None);
        }
        Ok(Some(profile.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Modules = Modules {
        selinux: true,
        apparmor: true,
    };

    #[test]
    fn labels_are_kept_where_the_kernel_has_the_module() {
        let label = "system_u:system_r:container_t:s0:c1,c2".to_owned();
        let kept = BOTH.selinux_label("process.selinuxLabel", Some(&label));
        assert_eq!(kept.unwrap(), Some(label));
        let profile = "cri-containerd.apparmor.d".to_owned();
        let kept = BOTH.apparmor_profile(Some(&profile));
        assert_eq!(kept.unwrap(), Some(profile));
    }

    #[test]
    fn without_selinux_a_label_is_refused_and_without_apparmor_a_profile_left_out() {
        let none = Modules::default();
        let text = "x_u:x_r:x_t:s0".to_owned();
        assert!(none.selinux_label("linux.mountLabel", Some(&text)).is_err());
        assert_eq!(none.apparmor_profile(Some(&text)).unwrap(), None);
    }

    #[test]
    fn nothing_asked_for_is_nothing() {
        let (empty, unconfined) = (String::new(), "unconfined".to_owned());
        for modules in [BOTH, Modules::default()] {
            assert_eq!(modules.selinux_label("x", None).unwrap(), None);
            assert_eq!(modules.selinux_label("x", Some(&empty)).unwrap(), None);
            assert_eq!(modules.apparmor_profile(Some(&empty)).unwrap(), None);
            assert_eq!(modules.apparmor_profile(Some(&unconfined)).unwrap(), None);
        }
    }

    #[test]
    fn a_second_line_is_refused() {
        let text = "a\nexec b".to_owned();
        assert!(BOTH.selinux_label("x", Some(&text)).is_err());
        assert!(BOTH.apparmor_profile(Some(&text)).is_err());
    }
}
