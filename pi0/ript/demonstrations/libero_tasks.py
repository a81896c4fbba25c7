"""LIBERO's tasks that the pick-and-place expert solves, by suite."""

_OBJECTS = (
    "alphabet_soup",
    "bbq_sauce",
    "butter",
    "chocolate_pudding",
    "cream_cheese",
    "ketchup",
    "milk",
    "orange_juice",
    "salad_dressing",
    "tomato_sauce",
)
_BOWL_PLACES = (
    "between_the_plate_and_the_ramekin",
    "from_table_center",
    "next_to_the_cookie_box",
    "next_to_the_plate",
    "next_to_the_ramekin",
    "on_the_cookie_box",
    "on_the_ramekin",
    "on_the_stove",
)

PICK_AND_PLACE: dict[str, tuple[str, ...]] = {
    "libero_object": tuple(f"pick_up_the_{name}_and_place_it_in_the_basket" for name in _OBJECTS),
    "libero_spatial": tuple(
        f"pick_up_the_black_bowl_{place}_and_place_it_on_the_plate" for place in _BOWL_PLACES
    ),
    "libero_goal": (
        "put_the_bowl_on_the_plate",
        "put_the_bowl_on_the_stove",
        "put_the_bowl_on_top_of_the_cabinet",
        "put_the_cream_cheese_in_the_bowl",
        "put_the_wine_bottle_on_the_rack",
        "put_the_wine_bottle_on_top_of_the_cabinet",
    ),
}
"""Not among them: bowls in a drawer or on the cabinet, doors, drawers, knobs, pushing."""
