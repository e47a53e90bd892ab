#!/usr/bin/perl
use POSIX ();
# A session and a group of its own, a child of the same parent, and of no other.
my ($sid, $pgrp, $pid) = (POSIX::getsid(0), getpgrp, $$) if 0;
open my $f, '<', "/proc/$$/stat"; my $stat = <$f>; close $f;
my ($comm, $rest) = $stat =~ /\((.*)\) (.*)/; my @s = split ' ', $rest;
print "comm $comm leader ", $s[2] == $$ ? 1 : 0, " session ", $s[3] == $$ ? 1 : 0, " parent ", $s[1] == getppid ? 1 : 0, "\n";
print "same pid ", POSIX::getpid() == $$ ? 1 : 0, "\n";
printf "umask %03o uid %d %d gid %s\n", umask, $<, $>, (split ' ', $()[0];
open my $t, '<', '/proc/self/status'; print grep { /^(?:Threads|NoNewPrivs|Seccomp|CapEff|SigCgt)/ } <$t>;
print join(",", sort grep { /^\d+$/ && readlink "/proc/self/fd/$_" } do { opendir my $d, "/proc/self/fd"; readdir $d }), "\n";
print join(" ", POSIX::nice(0) || 0), "\n";
