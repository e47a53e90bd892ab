#!/usr/bin/perl
use lib 'lib';
use WithData;
# The last handle that was read is the module's, at compile time.
warn "warned";
print "$.\n";
