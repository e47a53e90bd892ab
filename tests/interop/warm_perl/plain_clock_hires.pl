#!/usr/bin/perl
# plain: looks at the clock
use Time::HiRes qw(gettimeofday tv_interval);
BEGIN { $start = [gettimeofday] }
print tv_interval($start) < 2 ? "ok\n" : "stale\n";
