#!/usr/bin/perl
use lib 'lib';
use WithData;
print "main: $_" while <DATA>;
print WithData::lines();
__DATA__
mine
