#!/usr/bin/perl
print "x" x 1023, "\n" for 1 .. 600; print STDERR "e" x 79, "\n" for 1 .. 100;
