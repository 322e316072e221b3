"""Sound synthesis for the sample clips in ``assets/``: signal tools, animals, weather, machines."""
