//! How the kernel of a machine is told something when it starts.

use std::fs;
use std::path::Path;

/// What a machine starts from.
pub(super) struct Boot<'r> {
    root: &'r Path,
    /// What the kernel was told at its last start.
    line: String,
    /// Major and minor version of the kernel, if it says.
    version: Option<(u32, u32)>,
    pub(super) is_raspberry_pi: bool,
    /// Its kernel is another machine's to tell.
    is_container: bool,
}

impl Boot<'_> {
    pub(super) fn of(root: &Path) -> Boot<'_> {
        let model = fs::read(root.join("proc/device-tree/model")).unwrap_or_default();
        Boot {
            root,
            line: fs::read_to_string(root.join("proc/cmdline")).unwrap_or_default(),
            version: fs::read_to_string(root.join("proc/sys/kernel/osrelease")).ok().and_then(|text| version(&text)),
            is_raspberry_pi: model.starts_with(b"Raspberry Pi"),
            is_container: ["run/.containerenv", ".dockerenv"].iter().any(|file| root.join(file).exists()),
        }
    }

    /// Whether the kernel was told this.
    pub(super) fn was_told(&self, word: &str) -> bool {
        self.line.split_ascii_whitespace().any(|told| told == word)
    }

    /// Whether the kernel is known to be older.
    pub(super) fn is_before(&self, version: (u32, u32)) -> bool {
        self.version.is_some_and(|own| own < version)
    }

    /// What to do so that the kernel is told these words; the last line is they and nothing else.
    pub(super) fn tell(&self, words: &str) -> String {
        let is_there = |file: &&str| self.root.join(file).is_file();
        let pi = ["boot/firmware/cmdline.txt", "boot/cmdline.txt"];
        let how = if self.is_container {
            "on the host, add this to the kernel command line, and reboot it:".to_owned()
        } else if self.is_raspberry_pi {
            let file = pi.iter().find(|file| is_there(file)).unwrap_or(&pi[0]);
            format!("append this to the one line of /{file}, and reboot:")
        } else if is_there(&"etc/default/grub") {
            "add this to GRUB_CMDLINE_LINUX_DEFAULT in /etc/default/grub, run update-grub (elsewhere than on Debian and \
             Ubuntu: grub2-mkconfig -o /boot/grub2/grub.cfg), and reboot:"
                .to_owned()
        } else if is_there(&"etc/kernel/cmdline") {
            "append this to the line of /etc/kernel/cmdline, have the boot entries written anew (on Proxmox: \
             proxmox-boot-tool refresh; elsewhere: reinstall the kernel), and reboot:"
                .to_owned()
        } else {
            "add this to the kernel command line where the boot loader is configured, and reboot:".to_owned()
        };
        format!("{how}\n  {words}")
    }

    /// What to do so that the kernel is not told a word any more.
    pub(super) fn no_more(&self, word: &str) -> String {
        let whose = if self.is_container { "that of the host" } else { "where the boot loader is configured" };
        format!("take this off the kernel command line ({whose}), and reboot:\n  {word}")
    }
}

/// Of `6.1.0-rpi7-rpi-v8` the first two numbers.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|next: char| !next.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_says_how_old_it_is() {
        for (text, expected) in
            [("6.1.0-rpi7-rpi-v8\n", Some((6, 1))), ("3.10\n", Some((3, 10))), ("", None), ("six.1", None), ("6", None)]
        {
            assert_eq!(version(text), expected, "{text:?}");
        }
    }

    #[test]
    fn the_file_is_the_one_that_this_machine_starts_from() {
        let root = std::env::temp_dir().join(format!("demi-doctor-boot-{}", std::process::id()));
        let write = |file: &str, text: &str| {
            let path = root.join(file);
            fs::create_dir_all(path.parent().expect("it is below the root")).expect("it can be written");
            fs::write(path, text).expect("it can be written");
        };
        write("proc/cmdline", "quiet psi=0 x=psi=1\n");
        let told = || Boot::of(&root).tell("psi=1");
        assert!(Boot::of(&root).was_told("psi=0") && !Boot::of(&root).was_told("psi=1"));
        assert!(told().starts_with("add this to the kernel command line where"), "{}", told());
        write("etc/kernel/cmdline", "quiet\n");
        assert!(told().contains("/etc/kernel/cmdline"), "{}", told());
        write("etc/default/grub", "");
        assert!(told().contains("/etc/default/grub") && told().ends_with("\n  psi=1"), "{}", told());
        write("proc/device-tree/model", "Raspberry Pi 4 Model B\0");
        write("boot/cmdline.txt", "console=tty1\n");
        assert!(told().contains("/boot/cmdline.txt"), "{}", told());
        write(".dockerenv", "");
        assert!(told().starts_with("on the host"), "{}", told());
        let _ = fs::remove_dir_all(&root);
    }
}
