#!/usr/bin/perl
# plain: looks at the time of its start
BEGIN { $t = $^T }
print abs(time - $t) <= 2 ? "ok\n" : "stale\n";
