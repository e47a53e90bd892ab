#!/usr/bin/perl
# plain: starts a pro
BEGIN { $x = `echo started` }
print $x;
