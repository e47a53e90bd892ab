#!/usr/bin/perl
BEGIN { open STDERR, '>&', \*STDOUT or die; $| = 1 }
print "one\n"; warn "two\n"; print "three\n"; system "echo four >&2";
