#!/usr/bin/perl
# plain: starts a process
BEGIN { $pid = fork; if (!$pid) { exit 3 } waitpid $pid, 0 }
print $? >> 8, "\n";
