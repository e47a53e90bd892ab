#!/usr/bin/perl
# plain: writes to .*log.txt
BEGIN { open LOG, '>>', 'log.txt' or die; print LOG "started\n" }
print LOG "running\n"; print "ok\n";
