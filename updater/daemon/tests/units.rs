// SPDX-License-Identifier: Apache-2.0
//! What the updater's units must say for a boot to be judged. That systemd does as they say is for the tests in VMs.

use std::{fs, path::Path};

use cluster_updater::paths::Paths;

/// Words of all lines `key=` of a unit; an empty one forgets those before it.
fn words(unit: &str, key: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../units").join(unit);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut words = Vec::new();
    for value in text.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')) {
        if value.is_empty() {
            words.clear();
        }
        words.extend(value.split_whitespace().map(str::to_owned));
    }
    words
}

#[test]
fn the_check_does_not_wait_for_an_agent_that_never_gets_ready() {
    let check = "cluster-boot-check.service";
    for key in ["After", "Requires", "BindsTo", "Requisite"] {
        assert!(!words(check, key).contains(&"cluster-agent.service".to_owned()), "{key}");
    }
    assert_eq!(words(check, "Wants"), ["cluster-agent.service"]);
    assert_eq!(words("cluster-agent.service", "Type"), ["notify"]);
}

/// Whatever ends the check but a pass: systemd restarts the machine, and the check itself asks for nothing.
#[test]
fn a_check_that_fails_in_any_way_restarts_the_machine() {
    let failed = words("cluster-boot-check.service", "OnFailure");
    assert_eq!(failed, ["cluster-boot-failed.service"]);
    assert!(words("cluster-boot-check.service", "Restart").is_empty());
    // A failure leaves it by its exit code or a signal; neither counts as success.
    assert!(words("cluster-boot-check.service", "SuccessExitStatus").is_empty());
    for action in ["SuccessAction", "FailureAction"] {
        assert_eq!(words(&failed[0], action), ["reboot"]);
    }
    // The check ends at every shutdown: then it must not restart what is being switched off.
    assert_eq!(words(&failed[0], "Conflicts"), ["shutdown.target"]);
    assert_eq!(words("cluster-boot-check.service", "OnFailureJobMode"), ["fail"]);
}

#[test]
fn whoever_writes_to_the_esp_holds_one_lock() {
    let bless = "systemd-bless-boot.service.d/10-cluster-os.conf";
    let lock = Paths::default().esp_lock;
    let command = words(bless, "ExecStart");
    assert_eq!(command[0], "/usr/bin/flock");
    assert!(command.contains(&lock.display().to_string()), "{command:?}");
    // All of it under the lock, and again when it failed.
    for key in ["ExecStartPre", "ExecStartPost"] {
        assert!(words(bless, key).is_empty());
    }
    assert_eq!(words(bless, "Restart"), ["on-failure"]);
}

/// Sixteen messages of the largest size, which any user can send at once, must fit beside what a service needs.
#[test]
fn what_any_user_can_send_fits_into_the_memory_of_a_service() {
    let limits = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../mkosi.extra/usr/share/dbus-1/system.d/00-cluster-os-limits.conf");
    let text = fs::read_to_string(limits).unwrap();
    let limit = text.split_once("name=\"max_message_size\">").and_then(|(_, rest)| rest.split_once('<'));
    let limit: u64 = limit.unwrap().0.parse().unwrap();
    for unit in ["cluster-agent.service", "cluster-updater.service"] {
        let memory = words(unit, "MemoryMax").remove(0);
        let memory: u64 = memory.strip_suffix('M').unwrap().parse::<u64>().unwrap() << 20;
        assert!(16 * limit <= memory / 4, "{unit}");
    }
}

/// A local user who may connect could keep the updater from being answered.
#[test]
fn only_the_updater_reaches_the_socket_of_the_releases() {
    assert_eq!(words("cluster-releases.service", "RuntimeDirectoryMode"), ["0750"]);
    assert_eq!(words("cluster-updater.service", "SupplementaryGroups"), ["cluster-releases"]);
}

#[test]
fn the_agent_does_not_start_from_a_disk_that_the_node_has_left() {
    let mark = Paths::default().moved.display().to_string();
    assert_eq!(words("cluster-agent.service", "ConditionPathExists"), [format!("!{mark}")]);
    assert!(words("cluster-agent.service", "After").contains(&"cluster-moved.service".to_owned()));
    assert_eq!(words("cluster-moved.service", "ConditionPathExists"), [mark.as_str()]);
    // It may write the mark, and everybody may read it.
    let folder = Paths::default().moved.parent().unwrap().display().to_string();
    assert_eq!(words("cluster-moved.service", "ReadWritePaths"), [folder]);
    assert_eq!(words("cluster-moved.service", "UMask"), ["0022"]);
    let preset = "../../mkosi.extra/usr/lib/systemd/system-preset/00-cluster-os.preset";
    let preset = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(preset)).unwrap();
    assert!(preset.contains("enable cluster-moved.service\n"));
    // clusterctl shows what it says, by a constant of its own.
    let paths = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../agent/daemon/src/paths.rs");
    assert!(fs::read_to_string(paths).unwrap().contains(&format!("MOVED: &str = \"{mark}\"")));
}

#[test]
fn the_lock_of_the_slots_is_there_before_anybody_needs_it() {
    let tmpfiles =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../mkosi.extra/usr/lib/tmpfiles.d/cluster-os.conf");
    let lock = Paths::default().slots_lock;
    assert!(
        fs::read_to_string(tmpfiles).unwrap().contains(&format!("f {} 0600 root root -\n", lock.display()))
    );
}

/// That a machine restarts by it is for a VM that hangs.
#[test]
fn what_hangs_restarts_before_and_after_the_root_is_mounted() {
    let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for system in ["mkosi.extra", "mkosi.images/initrd/mkosi.extra"] {
        let conf = image.join(system).join("usr/lib/systemd/system.conf.d/10-cluster-os.conf");
        let text = fs::read_to_string(conf).unwrap();
        assert!(text.lines().any(|line| line == "RuntimeWatchdogSec=60s"), "{system}");
    }
    // PID 1 lives, and what it waits for never comes.
    let initrd = "mkosi.images/initrd/mkosi.extra/usr/lib/systemd/system";
    let deadline = format!("../{initrd}/cluster-os-deadline.timer");
    assert!(image.join(initrd).join("sysinit.target.wants/cluster-os-deadline.timer").exists());
    assert_eq!(words(&deadline, "Unit"), ["emergency.target"]);
    let counted = words("cluster-boot-check.service", "ConditionPathExists");
    assert_eq!(words(&deadline, "ConditionPathExists"), counted);
    let command_line = fs::read_to_string(image.join("mkosi.conf")).unwrap();
    for word in ["panic=10", "softlockup_panic=1"] {
        assert!(command_line.lines().any(|line| line.trim() == word), "{word}");
    }
    let preset = image.join("mkosi.extra/usr/lib/systemd/system-preset/00-cluster-os.preset");
    assert!(fs::read_to_string(preset).unwrap().contains("enable cluster-softdog.service\n"));
    assert_eq!(words("cluster-softdog.service", "ConditionPathExists"), ["!/dev/watchdog0"]);
}
