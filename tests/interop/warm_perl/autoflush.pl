#!/usr/bin/perl
BEGIN { $| = 1 }
print "a"; system "printf b"; print "c\n";
local $| = 0;
print "d"; system "printf e"; print "f\n";
