#!/usr/bin/perl
use lib 'lib';
use Loud;
print "quiet words\n";
print "second\n";
