#!/usr/bin/perl
# body: never read
print "ok\n";
