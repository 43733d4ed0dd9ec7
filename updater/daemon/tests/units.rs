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
    // It takes the names of a try that was given back from where they are written.
    let script = format!("../mkosi.extra{}", command[4]);
    let script = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../").join(script)).unwrap();
    assert!(script.contains(&Paths::default().refunded.display().to_string()), "{script}");
    // All of it under the lock, and again when it failed. What comes after it asks the updater, which takes the lock itself.
    assert!(words(bless, "ExecStartPre").is_empty());
    let after = words(bless, "ExecStartPost");
    assert_eq!(after[0], "-/usr/bin/busctl");
    assert!(!after.contains(&"--expect-reply=no".to_owned()), "{after:?}");
    assert_eq!(after.last().unwrap(), "RefreshBootLoader");
    assert_eq!(words(bless, "Restart"), ["on-failure"]);
}

/// A boot that ends without a verdict in the history gets its try back, as if the power had ended it.
#[test]
fn a_restart_that_the_check_did_not_ask_for_is_noted_and_waits_for_nothing() {
    for unit in ["cluster-boot-failed.service", "cluster-boot-late.service"] {
        let command = words(unit, "ExecStart");
        // Whether it can be noted or not, the machine restarts, and soon.
        assert_eq!(command[..2], ["-/usr/lib/clusteros/cluster-updater", "note-failure"], "{unit}");
        assert_eq!(words(unit, "TimeoutStartSec"), ["15s"], "{unit}");
        assert_eq!(words(unit, "TimeoutStopSec"), ["5s"], "{unit}");
        assert!(words(unit, "StateDirectory").is_empty(), "{unit}");
        assert_eq!(words(unit, "ReadWritePaths"), [format!("-{}", Paths::default().state.display())]);
        // It reads the kernel's command line, and this boot's id.
        assert!(words(unit, "ProcSubset").is_empty(), "{unit}");
    }
}

/// What stays in the firmware's variables fills them, and says nothing of when it was.
#[test]
fn records_of_crashes_are_moved_out_of_the_firmware() {
    let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let preset = image.join("mkosi.extra/usr/lib/systemd/system-preset/00-cluster-os.preset");
    assert!(fs::read_to_string(preset).unwrap().contains("enable systemd-pstore.service\n"));
    let conf = fs::read_to_string(image.join("mkosi.conf.d/61-modules-of-the-initrd.conf")).unwrap();
    assert!(conf.lines().any(|line| line.trim() == r"/efi-pstore\.ko"));
}

/// PID 1 lives, and something before the check never ends, such as a unit before sysinit.target.
#[test]
fn a_trial_boot_whose_check_never_begins_restarts() {
    let (timer, late) = ("cluster-boot-late.timer", "cluster-boot-late.service");
    // Neither waits for anything, and nothing that hangs can keep the restart waiting.
    for unit in [timer, late] {
        assert_eq!(words(unit, "DefaultDependencies"), ["no"], "{unit}");
        for key in ["After", "Requires", "Requisite", "BindsTo", "Wants"] {
            assert!(words(unit, key).is_empty(), "{unit}: {key}");
        }
        assert_eq!(words(unit, "Conflicts"), ["shutdown.target"], "{unit}");
    }
    assert_eq!(words(timer, "WantedBy"), ["sysinit.target"]);
    assert_eq!(words(timer, "Unit"), [late]);
    let check = "cluster-boot-check.service";
    assert_eq!(words(timer, "ConditionPathExists"), words(check, "ConditionPathExists"));
    // Of a check that has begun its own clock takes over.
    let folder = format!("/run/{}", words(check, "RuntimeDirectory")[0]);
    assert_eq!(words(late, "ConditionPathExists"), [format!("!{folder}")]);
    assert_eq!(Path::new(&folder), Paths::default().verdict.parent().unwrap());
    for action in ["SuccessAction", "FailureAction"] {
        assert_eq!(words(late, action), ["reboot-force"]);
    }
    let preset = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../mkosi.extra/usr/lib/systemd/system-preset/00-cluster-os.preset");
    assert!(fs::read_to_string(preset).unwrap().contains("enable cluster-boot-late.timer\n"));
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

/// The boot loader comes from the image, which dm-verity guards, and the packages that bring it stay in the image.
#[test]
fn the_image_has_the_boot_loader_that_goes_to_the_esp() {
    let path = Paths::default().boot_loader;
    assert!(path.starts_with("/usr/lib/systemd/boot/efi"));
    let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../mkosi.conf.d");
    let packages = fs::read_to_string(image.join("30-packages.conf")).unwrap();
    assert!(packages.lines().any(|line| line.trim() == "systemd-boot-efi"));
    let removed = fs::read_to_string(image.join("50-remove-files.conf")).unwrap();
    assert!(!removed.lines().any(|line| line.trim().starts_with("/usr/lib/systemd/boot")));
}

/// Whoever talks to web servers owns nothing and is nobody else.
#[test]
fn the_user_that_fetches_is_one_of_its_own() {
    let skeleton = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../mkosi.skeleton/etc");
    let users = fs::read_to_string(skeleton.join("passwd")).unwrap();
    let user = users.lines().find(|line| line.starts_with("cluster-fetch:")).unwrap();
    let fields: Vec<&str> = user.split(':').collect();
    assert_eq!(fields[6], "/usr/sbin/nologin");
    assert_eq!(users.lines().filter(|line| line.split(':').nth(2) == Some(fields[2])).count(), 1);
    let groups = fs::read_to_string(skeleton.join("group")).unwrap();
    assert!(groups.lines().any(|line| line == format!("cluster-fetch:x:{}:", fields[3])));
    for unit in ["cluster-agent.service", "cluster-releases.service", "cluster-updater.service"] {
        assert_ne!(words(unit, "User"), ["cluster-fetch"]);
    }
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
    let command_line = fs::read_to_string(image.join("mkosi.conf.d/20-kernel-command-line.conf")).unwrap();
    for word in ["panic=10", "softlockup_panic=1"] {
        assert!(command_line.lines().any(|line| line.trim() == word), "{word}");
    }
    let preset = image.join("mkosi.extra/usr/lib/systemd/system-preset/00-cluster-os.preset");
    assert!(fs::read_to_string(preset).unwrap().contains("enable cluster-softdog.service\n"));
    assert_eq!(words("cluster-softdog.service", "ConditionPathExists"), ["!/dev/watchdog0"]);
}
