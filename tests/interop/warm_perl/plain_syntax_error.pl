#!/usr/bin/perl
# plain: does not compile
print "x;
