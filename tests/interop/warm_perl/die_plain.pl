#!/usr/bin/perl
print "out";
die "no newline";
