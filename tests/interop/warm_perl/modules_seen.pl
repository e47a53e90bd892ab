#!/usr/bin/perl
# What is loaded, and where it is looked for, is what the script asked for.
print join("\n", map { "$_ => $INC{$_}" } sort keys %INC), "\n@INC\n";
print join(" ", grep { /^\w.*::$/ && $_ ne "perl_template::" } sort keys %main::), "\n";
print join(" ", grep { /^[a-z]\w+$/ } sort keys %main::), "\n";
